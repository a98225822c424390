"""Whatever is given as configuration is taken, or told in one line: no other error comes out. 5,000 inputs, the same in every run."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from pararl.cli import parse
from pararl.cli.validation import validate
from pararl.config import ARMS, PER_ARM, SETTINGS, Config, ConfigError, flat

BATCH = 25
KEYS = [*SETTINGS, *(f"arm.{arm}.{key}" for arm, key in itertools.product(ARMS[:3], PER_ARM[:12])), "arm", "run", "run.nothing", "x"]
WORDS = ["", "-1", "1e400", "nan", "scenes", "scenes-showo", "clip:x", "a:b", "[", "{", "t2i,i2t", "t2i:2,edit:1", "pararl,online_dpo"]
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.integers(),
    st.floats(),
    st.sampled_from(WORDS),
    st.sampled_from(["auto", "linear", "elbo", "trl", "static", "released", "block", "/proc/x", "\x00", "é" * 200, "a/b\\c\n"]),
    st.text(max_size=12),
)
VALUES = st.recursive(PLAIN, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=2)))
OWN = {key: st.tuples(st.just(key), st.sampled_from([value, str(value)])) for key, value in flat(Config()).items()}
PLAUSIBLE = st.sampled_from(list(OWN)).flatmap(OWN.__getitem__)
ANY = st.tuples(st.sampled_from(KEYS), VALUES)
SOME = st.one_of(st.lists(PLAUSIBLE, max_size=4), st.lists(st.one_of(PLAUSIBLE, ANY), min_size=1, max_size=4)).map(dict)


def inputs(count: int) -> settings:
    """``count`` inputs in examples of ``BATCH``; the same ones every time, because a test that fails now and then is no test."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(max_examples=count // BATCH, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


def batch(of: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(of, min_size=BATCH, max_size=BATCH)


@pytest.fixture(scope="module")
def seen() -> dict[bool, int]:
    """How many inputs were taken, and how many told."""
    return {True: 0, False: 0}


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return parse._parser()


@inputs(2000)
@given(batch(SOME))
def test_settings_are_taken_or_told(parser: ArgumentParser, seen: dict[bool, int], given_at_once: list[dict[str, Any]]) -> None:
    for values in given_at_once:
        try:
            validate(parse._layer(parser, Config(), values, "in fuzz.yaml"), files=False)
            seen[True] += 1
        except ConfigError as error:
            assert str(error).strip() and "Traceback" not in str(error)
            seen[False] += 1


def test_both_happen_often(seen: dict[bool, int]) -> None:
    assert min(seen.values()) > 50 and sum(seen.values()) >= 2000


def as_yaml(values: dict[str, Any]) -> bytes:
    return yaml.safe_dump({"run": {"seed": 1}, "learner": {key[:9]: str(value) for key, value in values.items()}}).encode()


BROKEN = [b"[" * 1100, b"a: &a [*a]", b"a: *b", b"run: {seed: 1, seed: 2}", b"!!python/object:os.system {}", b"\xff\xfea"]
TEXTS = st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))


@inputs(3000)
@given(batch(st.one_of(st.binary(max_size=60), TEXTS, SOME.map(as_yaml), st.sampled_from(BROKEN))))
def test_files_are_read_or_told(tmp_path: Path, given_at_once: list[bytes]) -> None:
    file = tmp_path / "fuzz.yaml"
    for content in given_at_once:
        file.write_bytes(content)
        try:
            assert isinstance(parse._read(file), dict)
        except ConfigError as error:
            assert str(file) in str(error) or "fuzz.yaml" in str(error)
