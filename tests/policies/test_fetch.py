"""Models in the cache: found by name, fetched once, and refused in one line."""

import pytest

from surefoot.errors import InputError
from surefoot.policies import causal_lm, fetch
from surefoot.pretraining.tokenizer import build
from tests.conftest import tiny_llama


def test_a_local_folder_is_converted_once_and_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "source"
    tiny_llama(vocab=104).save_pretrained(source)
    build().save_pretrained(source)
    monkeypatch.setattr(fetch, "_from_hub", lambda name, out: fetch._convert(name, source, {}, out))
    folder = fetch.fetch("somebody/tiny")
    assert (folder / "model.safetensors").is_file() and causal_lm.find(folder.name) == folder
    monkeypatch.setattr(fetch, "_from_hub", None)
    assert fetch.fetch("somebody/tiny") == folder
    assert causal_lm.CausalLM.load(folder.name).context == 128
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="holds no config.json"):
        fetch.fetch("somebody/tiny")


def test_unknown_names(tmp_path, monkeypatch):
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="did you mean 'smollm2-135m'"):
        fetch.fetch("smollm2-135")
    with pytest.raises(InputError, match="did you mean 'pebble'"):
        causal_lm.find("pebbel")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no config.json"):
        causal_lm.find(str(tmp_path / "empty"))


def test_corrupt_weights_are_one_line(tmp_path):
    tiny_llama(vocab=104).save_pretrained(tmp_path)
    build().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(InputError) as caught:
        causal_lm.CausalLM.load(str(tmp_path))
    assert "\n" not in str(caught.value)
