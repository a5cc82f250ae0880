"""The wrapper and its cache: shapes, truncation, and parity with passes that use no cache."""

from __future__ import annotations

import pytest
import torch

from specdec.models.wrapper import ModelWrapper, Session
from specdec.utils.errors import SpecdecError
from tests.tiny import KINDS, make_model, wrap

LAYERS, HEADS, HEAD_DIM, LENGTH = 2, 4, 8, 20


@pytest.fixture(scope="module")
def wrapper(tiny_tokenizer):
    return wrap(make_model(vocab_size=len(tiny_tokenizer)), tiny_tokenizer)


@pytest.fixture(scope="module", params=KINDS)
def exact(request):
    """A wrapper in float64 of each architecture."""
    return wrap(make_model(request.param, dtype=torch.float64))


def ids(length, seed=0):
    return torch.randint(1, 256, (1, length), generator=torch.Generator().manual_seed(seed))


class TestCacheShape:
    def test_there_is_one_entry_a_layer(self, wrapper):
        _, cache = wrapper.forward(ids(LENGTH))
        assert len(cache) == LAYERS == len(list(cache))

    def test_each_entry_is_keys_and_values_of_batch_heads_length_and_head_dim(self, wrapper):
        _, cache = wrapper.forward(ids(LENGTH))
        for keys, values in cache:
            assert keys.shape == values.shape == (1, HEADS, LENGTH, HEAD_DIM)
        assert torch.equal(cache[1][0], list(cache)[1][0])

    def test_the_length_counts_the_tokens_that_were_read(self, wrapper):
        _, cache = wrapper.forward(ids(LENGTH))
        assert wrapper.get_cache_length(cache) == LENGTH
        assert wrapper.get_cache_length(None) == 0


class TestCacheTruncation:
    @pytest.mark.parametrize("keep", [0, 1, 10, LENGTH])
    def test_the_shorter_cache_holds_as_many_tokens_as_asked(self, wrapper, keep):
        _, cache = wrapper.forward(ids(LENGTH))
        shorter = wrapper.truncate_cache(cache, keep_length=keep)
        assert wrapper.get_cache_length(shorter) == keep
        for keys, _ in shorter:
            assert keys.shape[2] == keep

    def test_the_original_stays_usable_as_it_was(self, wrapper):
        prompt = ids(LENGTH)
        _, cache = wrapper.forward(prompt)
        before = [keys.clone() for keys, _ in cache]
        shorter = wrapper.truncate_cache(cache, 10)
        wrapper.forward(ids(5, seed=1), shorter)
        assert wrapper.get_cache_length(cache) == LENGTH
        assert all(torch.equal(keys, old) for (keys, _), old in zip(cache, before, strict=True))
        logits, _ = wrapper.forward(ids(1, seed=2), cache)
        whole, _ = wrapper.forward(torch.cat([prompt, ids(1, seed=2)], 1), use_cache=False)
        torch.testing.assert_close(logits[0, -1], whole[0, -1], atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("keep", [-1, LENGTH + 1])
    def test_a_length_that_is_not_there_is_refused(self, wrapper, keep):
        _, cache = wrapper.forward(ids(LENGTH))
        with pytest.raises(SpecdecError, match="outside 0..20"):
            wrapper.truncate_cache(cache, keep)


class TestForwardWithCache:
    def test_one_token_after_a_truncation_gives_one_row_and_grows_the_cache_by_one(self, wrapper):
        _, cache = wrapper.forward(ids(LENGTH))
        cache = wrapper.truncate_cache(cache, 10)
        logits, cache = wrapper.forward(ids(1), past_key_values=cache)
        assert logits.shape == (1, 1, wrapper.model.config.vocab_size)
        assert wrapper.get_cache_length(cache) == 11

    def test_without_a_cache_none_is_returned(self, wrapper):
        logits, cache = wrapper.forward(ids(LENGTH), use_cache=False)
        assert cache is None and logits.shape[1] == LENGTH

    def test_only_the_last_logits_are_given_where_only_they_are_asked_for(self, wrapper):
        whole, _ = wrapper.forward(ids(LENGTH), use_cache=False)
        some, _ = wrapper.forward(ids(LENGTH), logits_to_keep=3)
        torch.testing.assert_close(some, whole[:, -3:])


class TestParity:
    def test_cached_passes_equal_an_uncached_one(self, exact):
        sequence = ids(30)
        whole, _ = exact.forward(sequence, use_cache=False)
        cache, rows = None, []
        for first, last in [(0, 12), (12, 13), (13, 18), (18, 30)]:
            logits, cache = exact.forward(sequence[:, first:last], cache)
            rows.append(logits)
        torch.testing.assert_close(torch.cat(rows, 1), whole, atol=1e-9, rtol=1e-9)

    def test_a_truncated_cache_equals_one_that_was_never_fed(self, exact):
        prompt, wrong, right = ids(15), ids(6, seed=1), ids(6, seed=2)
        _, cache = exact.forward(torch.cat([prompt, wrong], 1))
        rolled_back, _ = exact.forward(right, exact.truncate_cache(cache, 15))
        _, fresh = exact.forward(prompt)
        never_fed, _ = exact.forward(right, fresh)
        torch.testing.assert_close(rolled_back, never_fed, atol=1e-9, rtol=1e-9)

    @pytest.mark.parametrize("wanted", [True, False], ids=["cached", "not"])
    def test_a_session_feeds_what_it_has_not_read_and_rolls_back(self, exact, wanted, monkeypatch):
        # Some checkpoints' configurations ask for no cache.
        monkeypatch.setattr(exact.model.config, "use_cache", wanted)
        sequence = ids(25)[0]
        session = Session(exact)
        session.read(sequence[:10], keep=1)
        session.read(ids(5, seed=3)[0], keep=5)
        session.roll_back(10)
        rows = session.read(sequence[session.length :], keep=15).logits
        whole, _ = exact.forward(sequence.unsqueeze(0), use_cache=False)
        torch.testing.assert_close(rows, whole[0, -15:], atol=1e-9, rtol=1e-9)


class TestSlidingWindow:
    """Phi-3 attends to a window only; rolling back over its edge must not lose what fell out."""

    @pytest.mark.parametrize("kind", ["phi3", "qwen2"])
    def test_rolling_back_past_the_window_equals_never_having_fed(self, kind):
        window = dict(sliding_window=16)
        if kind == "qwen2":
            window |= dict(use_sliding_window=True, max_window_layers=0)
        wrapper = wrap(make_model(kind, dtype=torch.float64, **window))
        prompt, wrong, right = ids(40), ids(8, seed=1), ids(8, seed=2)
        _, cache = wrapper.forward(torch.cat([prompt, wrong], 1))
        rolled_back, _ = wrapper.forward(right, wrapper.truncate_cache(cache, 40))
        whole, _ = wrapper.forward(torch.cat([prompt, right], 1), use_cache=False)
        torch.testing.assert_close(rolled_back, whole[:, 40:], atol=1e-9, rtol=1e-9)

    def test_the_window_is_really_there(self):
        narrow = wrap(make_model("phi3", dtype=torch.float64, sliding_window=16))
        wide = wrap(make_model("phi3", dtype=torch.float64, sliding_window=None))
        sequence = ids(40)
        assert not torch.allclose(
            narrow.forward(sequence)[0][0, -1], wide.forward(sequence)[0][0, -1]
        )


class TestProperties:
    def test_the_vocabulary_is_the_tokenizers(self, wrapper, tiny_tokenizer):
        assert wrapper.vocab_size == len(tiny_tokenizer)

    def test_parameters_and_memory_are_those_of_the_model(self, wrapper):
        parameters = sum(p.numel() for p in wrapper.model.parameters())
        assert wrapper.param_count == parameters
        assert wrapper.memory_footprint_mb == pytest.approx(4 * parameters / 2**20, rel=0.1)

    def test_the_repr_names_size_and_device(self, wrapper):
        assert "M parameters" in repr(wrapper) and "cpu" in repr(wrapper)

    def test_model_tokenizer_and_device_are_attributes(self, wrapper, tiny_tokenizer):
        again = ModelWrapper(wrapper.model, tiny_tokenizer, "cpu")
        assert again.tokenizer is tiny_tokenizer and again.model is wrapper.model
        assert again.device == torch.device("cpu")

    def test_end_tokens_come_from_the_generation_configuration(self, wrapper):
        assert wrapper.end_token_ids == {0}
