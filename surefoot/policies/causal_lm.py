"""Causal language models as policies: a step is a token."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from surefoot.cache import cache_folder
from surefoot.errors import InputError, nearest
from surefoot.objective.chunked import log_collision, token_logp
from surefoot.policies import llama
from surefoot.policies.base import refuse_unknown
from surefoot.rollout.native import Sampling, continued, decoder
from surefoot.rollout.turns import Reply, converse
from surefoot.rollouts import Rollouts

ASSETS = Path(__file__).parent.parent / "assets"
HEAD = "value_head.safetensors"
SHIPPED = {"pebble": ASSETS / "pebble"}


def find(name: str) -> Path | str:
    """The folder of a shipped, cached or given model; a Hugging Face id (`owner/name`) is returned as it is.

    Raises:
        InputError: no such folder, model or cached name.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    for path in (Path(name).expanduser(), cache_folder() / name):
        if (path / "config.json").is_file() or path.suffix == ".gguf" and path.is_file():
            return path
    if Path(name).expanduser().exists():
        raise InputError(f"policy {name!r}: the folder holds no config.json; expected a Hugging Face model folder")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    known = [*SHIPPED, *(p.name for p in cache_folder().glob("*") if p.is_dir())]
    raise InputError(f"policy {name!r}: no shipped or cached model, folder, or Hugging Face id{nearest(name, known)}")


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Weights are read and written without a bar of transformers' own among the command's lines."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class CausalLM:
    """A Hugging Face causal language model that samples and scores.

    Args:
        model: any `AutoModelForCausalLM`; evaluation mode is set here, so that dropout never separates sampling from
            scoring.
        tokenizer: its tokenizer.
        fast: use the packed Llama path where it applies (`policies.llama`); false takes the slow twin.
    """

    kind = "causal-lm"
    unit = "tokens"
    live = ("logp", "entropy", "collision", "value", "logits", "hidden")

    def __init__(self, model: Any, tokenizer: Any, name: str = "model", fast: bool = True):
        self.model: Any = model.eval()
        self.tokenizer, self.name = tokenizer, name
        self.fast = fast and llama.supported(model)
        if self.fast:
            llama.join(model)
        self.engine_dtype: torch.dtype | None = None  # of the engine's products, where it is not the model's own
        self.value_head: nn.Linear | None = None
        config = model.config
        self.context = int(getattr(config, "max_position_embeddings", 1 << 20))
        stops = getattr(model, "generation_config", None) and model.generation_config.eos_token_id
        stops = stops if stops is not None else tokenizer.eos_token_id
        self.stop = list(stops) if isinstance(stops, (list, tuple)) else [stops]
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stop[0]

    @classmethod
    def load(cls, name: str, lora: int = 0, dtype: torch.dtype = torch.float32, fast: bool = True) -> CausalLM:
        """Load `pebble`, a cached name, a folder (safetensors or GGUF) or a Hugging Face id.

        Args:
            lora: rank of LoRA adapters on all linear layers (needs the `lora` extra); 0 trains everything.

        Raises:
            InputError: nothing of that name, or a folder that does not load.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        where = find(name)
        kwargs, folder = {}, where
        if isinstance(where, Path) and where.suffix == ".gguf":
            folder, kwargs = where.parent, {"gguf_file": where.name}
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **kwargs)
            with _no_progress_bar():
                model = dequantized(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **kwargs))
        except (OSError, ValueError, KeyError, RuntimeError) as e:
            raise InputError(f"policy {name!r}: cannot be loaded ({_first_line(e)})") from None
        except Exception as e:  # safetensors' own error class derives from Exception alone
            if "afetensor" not in type(e).__name__:
                raise
            raise InputError(f"policy {name!r}: its weights are corrupt ({_first_line(e)})") from None
        if lora:
            model = _with_lora(model, lora)
        policy = cls(model, tokenizer, name=str(name), fast=fast)
        if isinstance(where, Path) and (where / HEAD).is_file():
            policy.critic().load_state_dict(load_file(where / HEAD))
        return policy

    @property
    def suggested_lr(self) -> float:
        """A learning rate to start from: what the model's card measured, else one that suits its size."""
        if self.name in SHIPPED:
            return 5e-4
        return 1e-5 if hasattr(self.model, "get_base_model") else 1e-6

    @property
    def engine_exact(self) -> bool:
        """Whether the engine's log-probabilities are the trainer's up to float32 rounding."""
        own = next(self.model.parameters()).dtype == torch.float32
        return own and self.engine_dtype in (None, torch.float32)

    # --- what a task gives and gets ---------------------------------------------------------------------------

    def prompt_text(self, question: str) -> str:
        """The text the model continues: its chat template where it has one, else the question and a newline."""
        if getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": question}]
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return question.strip() + "\n"

    def encode(self, questions: Sequence[str], room: int = 1) -> tuple[Int[Tensor, "m p"], Bool[Tensor, "m p"]]:
        """Prompt table of the questions, padded on the left.

        Raises:
            InputError: an empty question, or one that leaves fewer than `room` tokens of the context.
        """
        rows = []
        for question in questions:
            if not question.strip():
                raise InputError("empty prompt: expected some text")
            ids = self.tokenizer(self.prompt_text(question), add_special_tokens=False)["input_ids"]
            if len(ids) + room > self.context:
                raise InputError(
                    f"prompt of {len(ids)} tokens + {room} new ones is longer than the context of "
                    f"{self.context}: {question.strip()[:60]!r}"
                )
            rows.append(ids)
        width = max(map(len, rows))
        tokens = torch.tensor([[self.pad] * (width - len(r)) + r for r in rows])
        lengths = torch.tensor([len(r) for r in rows])
        return tokens, torch.arange(width) >= (width - lengths)[:, None]

    def heard(self, text: str) -> list[int]:
        """Tokens of what an environment answers to a turn: a user's message of the chat template, else a line."""
        if getattr(self.tokenizer, "chat_template", None):
            said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
            render = self.tokenizer.apply_chat_template
            before = render(said, tokenize=False)
            whole = render([*said, {"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
            end = before.rfind("!") + 1  # the turn's own end was said by the policy, with its stop token
            stops = [t for t in self.tokenizer.batch_decode(self.stop) if before.startswith(t, end)]
            text = whole[end + len(stops[0]) if stops else end :]
        else:
            text = text.strip("\n") + "\n"
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, tokens: Int[Tensor, "n t"], present: Bool[Tensor, "n t"]) -> list[str]:
        """The text of each row, without special tokens."""
        rows = [row[keep].tolist() for row, keep in zip(tokens, present, strict=True)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def engine(self, tokens: Int[Tensor, "m p"], valid: Bool[Tensor, "m p"], group: Int[Tensor, "n"]) -> Any:
        """What draws the next tokens of prompts `tokens[group]` (`rollout.native.decoder`)."""
        return decoder(self.model, tokens, valid, group, self.fast, dtype=self.engine_dtype)

    # --- sampling and scoring ---------------------------------------------------------------------------------

    def sample(
        self, questions: Sequence[str], group: Int[Tensor, "n"], seeds: Int[Tensor, "n"], sampling: Sampling
    ) -> Rollouts:
        """One trajectory for each entry of `group`, which indexes `questions`."""
        tokens, valid = self.encode(questions, room=sampling.max_new_tokens)
        with torch.no_grad():
            engine = self.engine(tokens, valid, group)
            out = continued(engine, seeds, sampling, self.stop, self.pad)
        turn = torch.where(out.present, 0, -1)
        return Rollouts(
            dict(
                tokens=out.tokens,
                mask=out.present,
                present=out.present,
                turn=turn,
                group=group,
                seed=seeds,
                prompt_tokens=tokens,
                prompt_mask=valid,
                truncated=out.truncated,
                rollout_logp=out.logp,
            ),
            notes={"completion": self.decode(out.tokens, out.present)},
        )

    def extend(self, rollouts: Rollouts, sampling: Sampling, limit: int) -> Rollouts:
        """The trajectories that were cut before `limit` steps, with up to `sampling.max_new_tokens` more of them.

        Each goes on in its own random stream: what one policy makes in pieces, it would have made at once. The columns
        of sampling are returned as `sample` gives them, with all others that the table had; the others' rows and those
        that had ended are as they were.
        """
        r, length = rollouts, rollouts.present.sum(1)
        cut = (r.truncated & (length < limit)).nonzero().flatten()
        if not len(cut):
            return r
        said = torch.cat([r.prompt_mask[r.group[cut]], r.present[cut]], 1)
        order = said.int().argsort(dim=1, stable=True)  # all padding to the left
        prompts = torch.cat([r.prompt_tokens[r.group[cut]], r.tokens[cut]], 1).gather(1, order)
        with torch.no_grad():
            engine = self.engine(prompts, said.gather(1, order), torch.arange(len(cut)))
            out = continued(engine, r.seed[cut], sampling, self.stop, self.pad, length[cut])
        steps = torch.arange(out.tokens.shape[1])
        room = min(limit, int(length.max()) + len(steps))
        at = length[cut, None] + steps
        row, step = (out.present & (at < room)).nonzero().T
        target = cut[row], at[row, step]

        def grown(old: Tensor, new: Tensor | int | bool) -> Tensor:
            wide = torch.nn.functional.pad(old, (0, room - old.shape[1]), value=-1 if old is r.turn else 0)
            return wide.index_put(target, torch.as_tensor(new, dtype=old.dtype))

        present = grown(r.present, True)
        tokens = grown(r.tokens, out.tokens[row, step])
        ended = ~out.truncated & (length[cut] + out.present.sum(1) <= limit)
        table = r.without("tokens", "present", "mask", "turn", "rollout_logp")
        return table.having(
            notes={"completion": self.decode(tokens, present)},
            tokens=tokens,
            present=present,
            mask=grown(r.mask, True),
            turn=grown(r.turn, 0),
            rollout_logp=grown(r.rollout_logp, out.logp[row, step]),
            truncated=r.truncated.index_put((cut,), ~ended),
        )

    def logged(
        self, questions: Sequence[str], group: Int[Tensor, "n"], seeds: Int[Tensor, "n"], responses: Sequence[str]
    ) -> Rollouts:
        """The table of responses that somebody gave, one for each entry of `group`; each ends in the stop token.

        Raises:
            InputError: a response that does not fit into the context behind its question.
        """
        rows = [self.tokenizer(r, add_special_tokens=False)["input_ids"] + self.stop[:1] for r in responses]
        length = torch.tensor([len(r) for r in rows])
        prompts, valid = self.encode(questions)
        over = (valid.sum(1)[group] + length > self.context).nonzero()
        if len(over):
            i = int(over[0])
            raise InputError(f"response of {len(rows[i])} tokens does not fit the context: {responses[i][:60]!r}")
        width = int(length.max())
        present = torch.arange(width) < length[:, None]
        return Rollouts(
            dict(
                tokens=torch.tensor([r + [self.pad] * (width - len(r)) for r in rows]),
                mask=present,
                present=present,
                turn=torch.where(present, 0, -1),
                group=group,
                seed=seeds,
                prompt_tokens=prompts,
                prompt_mask=valid,
                truncated=torch.zeros(len(rows), dtype=torch.bool),
            ),
            notes={"completion": list(responses)},
        )

    def converse(
        self,
        questions: Sequence[str],
        group: Int[Tensor, "n"],
        seeds: Int[Tensor, "n"],
        sampling: Sampling,
        reply: Reply,
        turns: int,
    ) -> Rollouts:
        """Trajectories of several turns, which `reply` answers (`rollout.turns.converse`)."""
        return converse(self, questions, group, seeds, sampling, reply, turns)

    def score(self, rollouts: Rollouts, want: Collection[str], temperature: float = 1.0) -> dict[str, Tensor]:
        """The wanted live columns, in one forward pass, with gradient where it is enabled; zero on padding.

        `temperature` divides the logits, so that `logp` belongs to the policy that sampled (0 counts as 1).
        """
        refuse_unknown(self, want)
        home, device = rollouts.present.device, self.model.get_input_embeddings().weight.device
        if device != home:
            rollouts = rollouts.to(device)
        present, temperature = rollouts.present, temperature or 1.0
        hidden = self._hidden(rollouts)
        out: dict[str, Tensor] = {}
        head = self.model.get_output_embeddings()
        if "logits" in want:
            flat = (head(hidden).float() / temperature).log_softmax(-1)
            out["logits"] = _scatter(flat, present)
            if "logp" in want:
                out["logp"] = _scatter(flat.gather(1, rollouts.tokens[present][:, None])[:, 0], present)
            if "entropy" in want:
                out["entropy"] = _scatter(-(flat.exp() * flat).sum(-1), present)
        elif {"logp", "entropy"} & set(want):
            scored = token_logp(
                hidden,
                head.weight,
                rollouts.tokens[present],
                bias=head.bias,
                temperature=temperature,
                entropy="entropy" in want,
            )
            logp, entropy = scored if isinstance(scored, tuple) else (scored, None)
            if "logp" in want:
                out["logp"] = _scatter(logp, present)
            if entropy is not None:
                out["entropy"] = _scatter(entropy, present)
        if "collision" in want:
            collision = log_collision(hidden, head.weight, bias=head.bias, temperature=temperature)
            out["collision"] = _scatter(collision, present)
        if "value" in want:
            out["value"] = _scatter(self.critic()(hidden).float()[:, 0], present)
        if "hidden" in want:
            out["hidden"] = _scatter(hidden.float(), present)
        return {name: x.to(home) for name, x in out.items()}

    def _hidden(self, rollouts: Rollouts) -> Float[Tensor, "k d"]:
        if self.fast:  # only the prompts of these rows, without padding that they do not need
            used, group = rollouts.group.unique(return_inverse=True)
            valid = rollouts.prompt_mask[used]
            width = int(valid.sum(1).max())
            return llama.hidden_before_steps(
                llama.Stack(self.model),
                rollouts.prompt_tokens[used][:, -width:],
                valid[:, -width:],
                rollouts.tokens,
                rollouts.present,
                group,
            )
        prompts, valid = rollouts.prompt_tokens[rollouts.group], rollouts.prompt_mask[rollouts.group]
        tokens = torch.cat([prompts, rollouts.tokens], 1)
        mask = torch.cat([valid, rollouts.present], 1)
        positions = (mask.long().cumsum(1) - 1).clamp_min(0)
        out = llama.backbone(self.model)(input_ids=tokens, attention_mask=mask.long(), position_ids=positions)
        start = prompts.shape[1] - 1
        return out.last_hidden_state[:, start : start + rollouts.steps][rollouts.present]

    def critic(self) -> nn.Linear:
        """The value head (made, at zero, when a part first reads a value)."""
        if self.value_head is None:
            parameter = next(self.model.parameters())
            head = nn.Linear(self.model.config.hidden_size, 1, device=parameter.device)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            self.value_head = head
        return self.value_head

    # --- parameters, reference, disk --------------------------------------------------------------------------

    def parameters(self) -> list[nn.Parameter]:
        """What trains."""
        heads = list(self.value_head.parameters()) if self.value_head else []
        return [p for p in self.model.parameters() if p.requires_grad] + heads

    def reference(self) -> CausalLM | LoRAOff:
        """The policy as it is now, frozen: the same weights with the adapters off (LoRA), else a copy."""
        return LoRAOff(self) if self.adapted else self.frozen()

    @property
    def adapted(self) -> bool:
        """Whether adapters (LoRA) train, instead of the weights."""
        return hasattr(self.model, "get_base_model")

    def frozen(self) -> CausalLM:
        """A frozen copy with weights of its own, adapters merged into them."""
        twin, model = copy.copy(self), copy.deepcopy(self.model)
        twin.model = (model.merge_and_unload() if self.adapted else model).requires_grad_(False)
        if self.fast:
            llama.join(twin.model)
        twin.value_head = None
        return twin

    def extra_state(self) -> dict[str, Tensor]:
        """What the Hugging Face format does not carry: the value head, and adapters (LoRA)."""
        state: dict[str, Tensor] = (
            {f"value_head.{n}": p for n, p in self.value_head.named_parameters()} if self.value_head else {}
        )
        if hasattr(self.model, "get_base_model"):
            state |= {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        return state

    def restore(self, folder: Path, extra: dict[str, Tensor]) -> None:
        """Copy the weights of a checkpoint written by `save` (and its `extra_state`) in place.

        Raises:
            InputError: weights of another model.
        """
        from transformers import AutoModelForCausalLM

        own = dict(self.model.named_parameters())
        if hasattr(self.model, "get_base_model"):
            saved = {n: t for n, t in extra.items() if not n.startswith("value_head.")}
        else:
            with _no_progress_bar():
                saved = dict(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").named_parameters())
        heads = {n.removeprefix("value_head."): t for n, t in extra.items() if n.startswith("value_head.")}
        odd = {n for n in saved if n not in own or own[n].shape != saved[n].shape}
        if odd:
            raise InputError(f"checkpoint {folder}: weight {min(odd)!r} does not fit the policy {self.name!r}")
        with torch.no_grad():
            for name, tensor in saved.items():
                own[name].copy_(tensor)
            if heads:
                self.critic().load_state_dict(heads)

    def save(self, folder: Path) -> None:
        """Write the model in Hugging Face format (adapters merged); beside it the value head, where there is one."""
        model = self.model
        if hasattr(model, "get_base_model"):
            model = copy.deepcopy(model).merge_and_unload()
        with _no_progress_bar():
            model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.value_head:
            save_file({n: p.detach().clone() for n, p in self.value_head.named_parameters()}, folder / HEAD)

    def describe(self) -> dict:
        """Facts for the report."""
        return {
            "kind": self.kind,
            "name": self.name,
            "unit": self.unit,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trained": sum(p.numel() for p in self.parameters()),
            "context": self.context,
            "fast": self.fast,
        }


class LoRAOff:
    """A reference that costs no memory: the policy's own weights with the adapters switched off."""

    def __init__(self, policy: CausalLM):
        self._policy = policy

    def score(self, rollouts: Rollouts, want: Collection[str], temperature: float = 1.0) -> dict[str, Tensor]:
        with self._policy.model.disable_adapter():
            return self._policy.score(rollouts, want, temperature)


def dequantized(model: Any) -> Any:
    """A model read from GGUF holds plain weights already; forget where they came from, so that it can be saved."""
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer = None
        model.is_quantized = False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    return model


def _with_lora(model: nn.Module, rank: int) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise InputError("lora: peft is not installed; pip install 'surefoot[lora]'") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def _scatter(flat: Tensor, present: Bool[Tensor, "n t"]) -> Tensor:
    """Values of the present steps back on the [n t] grid, zero elsewhere."""
    grid = flat.new_zeros(present.numel(), *flat.shape[1:])
    return grid.index_copy(0, present.flatten().nonzero().flatten(), flat).unflatten(0, present.shape)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
