"""Clocks, power and energy of a GPU at work, with a library that stands for the driver's."""

import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from specdec.analysis.tables import make_tables
from specdec.profiling import power
from specdec.profiling.power import PowerSampler
from tests.simulated_runs import Truth, simulate_job

CUDA = torch.device("cuda:0")


class NVMLError(Exception):
    pass


def driver(missing=(), powers=(300_000, 500_000, 400_000)):
    """A driver of one GPU, whose energy grows by 50 J a reading; `missing` is not supported."""
    read = dict.fromkeys(["power", "energy"], 0)

    def power_usage(_):
        read["power"] += 1
        return powers[(read["power"] - 1) % len(powers)]

    def energy(_):
        read["energy"] += 1
        return 50_000 * read["energy"]

    def refuse(*_):
        raise NVMLError("Not Supported")

    calls = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetClockInfo": lambda _, kind: {0: 1980, 1: 2619}[kind],
        "nvmlDeviceGetMaxClockInfo": lambda _, kind: 1980,
        "nvmlDeviceGetPowerUsage": power_usage,
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
        "nvmlDeviceGetTemperature": lambda _, kind: 61,
        "nvmlDeviceGetTotalEnergyConsumption": energy,
    }
    calls |= dict.fromkeys(missing, refuse)
    constants = dict(NVML_CLOCK_SM=0, NVML_CLOCK_MEM=1, NVML_TEMPERATURE_GPU=0)
    return SimpleNamespace(NVMLError=NVMLError, **constants, **calls)


@pytest.fixture
def install(monkeypatch):
    properties = SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)

    def put(library):
        power._library.cache_clear()
        monkeypatch.setitem(sys.modules, "pynvml", library)

    yield put
    power._library.cache_clear()


def test_medians_and_the_energy_of_the_block(install):
    install(driver())
    with PowerSampler(CUDA, interval=0.001) as sampler:
        while len(sampler._samples["power_w"]) < 3:
            time.sleep(0.001)
        sampler._stop.set()  # no fourth sample: the median is that of three
        sampler._thread.join()
    assert sampler.figures == {
        "clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "power_w": pytest.approx(400, abs=100),
        "temperature_c": 61,
        "most_clock_mhz": 1980,
        "most_power_w": 700,
        "energy_j": 50,
    }


def test_a_block_shorter_than_the_interval_is_sampled_once(install):
    install(driver())
    with PowerSampler(CUDA, interval=60) as sampler:
        pass
    assert sampler.figures["power_w"] == 300


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTotalEnergyConsumption", "energy_j"),
        ("nvmlDeviceGetEnforcedPowerLimit", "most_power_w"),
    ],
)
def test_what_a_card_does_not_tell_is_left_out_by_itself(install, call, field):
    install(driver(missing=[call]))
    with PowerSampler(CUDA, interval=60) as sampler:
        pass
    assert field not in sampler.figures
    assert len(sampler.figures) == 6


def test_the_sampling_ends_with_the_block_also_where_it_fails(install):
    install(driver())
    with pytest.raises(ZeroDivisionError), PowerSampler(CUDA, interval=0.001) as sampler:
        raise ZeroDivisionError
    assert not sampler._thread.is_alive()


@pytest.mark.parametrize(
    "library",
    [None, driver(missing=["nvmlInit"]), driver(missing=["nvmlDeviceGetHandleByUUID"])],
    ids=["not installed", "no driver", "unknown GPU"],
)
def test_without_the_library_nothing_is_told(install, library):
    install(library)
    with PowerSampler(CUDA) as sampler:
        pass
    assert sampler.figures is None


def test_a_processor_tells_nothing():
    with PowerSampler(torch.device("cpu")) as sampler:
        pass
    assert sampler.figures is None


def test_the_tables_tell_joules_a_token_of_the_generations_that_know(tmp_path):
    path = simulate_job(tmp_path, Truth(), 2, prompts=3, tokens=20)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records[:4]:  # of two prompts of three
        record["gpu"] = {"energy_j": 30.0 if record["K"] else 60.0}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    tables = make_tables([path])
    assert tables.generations.energy_j.notna().sum() == 4
    (cell,) = tables.cells.itertuples()
    assert cell.joules_per_token == pytest.approx(60 / 40)
    assert cell.baseline_joules_per_token == pytest.approx(120 / 40)
