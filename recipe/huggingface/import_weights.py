"""Initial weights from a HuggingFace folder: a model of the same shape, or a dense one whose MLPs become experts.

Every tensor that will be read is looked up first, by the headers of the files alone. Weights are then read one tensor
at a time by rank 0, as the engine is built, so no rank ever holds the model.

Legend: D hidden size, E routed experts, F expert width, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipe.base.errors import ConfigError, UserError
from recipe.base.model_shape import ModelShape
from recipe.huggingface.architectures import EXPERT_BIAS, GLM4_MOE, MIXTRAL, QWEN3_MOE, Architecture, is_expert_bias
from recipe.huggingface.source_config import SourceConfig, read_source_config
from recipe.huggingface.weights_folder import FLOATS, SafetensorsFolder
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM

Weights = Callable[[str], torch.Tensor]  # a parameter's name -> its values
Initial = Callable[[str, torch.Tensor], None]  # fills a new tensor of a parameter's name with random values
Size = tuple[int, ...]

# What two models of one shape share that decides what a weight means; the rest of a config.json is about other things.
_SAME = sorted(set(ModelShape.model_fields) - {"model_type", "initializer_range", "attention_dropout", "max_position_embeddings"})  # fmt: skip
_OF_EXPERTS = {"first_k_dense_replace", "moe_intermediate_size", "n_routed_experts", "n_shared_experts", "num_experts_per_tok",
               "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "scoring_func"}  # fmt: skip
_HALVES = ("gate_proj", "up_proj")
_MOST_NAMED = 3  # tensors in a sentence


@dataclass(frozen=True)
class Parameter:
    """How a parameter of the run's model comes about.

    Args:
        sources: the tensors that are read, and the shape that each must have.
        combine: from their values to the parameter's.
    """

    sources: dict[str, Size]
    combine: Callable[..., torch.Tensor]


class ImportedWeights:
    """The values of the run's parameters by their names (`Weights`), all of which are known to be there.

    Args:
        parameters: of the run's model, by their names.
        notes: what the user should know, a sentence each.
        context: the longest sequences that the source says it takes, tokens.

    Raises:
        UserError: tensors that are missing, that have another shape or precision, or that nothing would read.
    """

    def __init__(self, tensors: SafetensorsFolder, source: SourceConfig, parameters: dict[str, Parameter]):
        self._tensors, self._parameters = tensors, parameters
        self.notes: list[str] = []
        self.context: int = source.values["max_position_embeddings"]
        self._check_read()
        self._check_unread(source)
        if source.tied:
            self._check_tied()

    def __call__(self, name: str) -> torch.Tensor:
        parameter = self._parameters[name]
        return parameter.combine(*(self._tensors(source) for source in parameter.sources))

    def _check_read(self) -> None:
        missing, problems = [], []
        for name, size in sorted(pair for parameter in self._parameters.values() for pair in parameter.sources.items()):
            header = self._tensors.headers.get(name)
            if header is None:
                missing.append(name)
            elif header.dtype not in FLOATS:
                problems.append(f"'{name}' is of {header.dtype}; give the model in bfloat16, float16 or float32")
            elif header.shape != size:
                problems.append(
                    f"'{name}' is {_by(header.shape)}, and by the config.json it is {_by(size)}; the two are of different models"
                )
        if missing:
            problems.append(f"there is no {_named(missing)}; the weights are of another model than the config.json")
        if problems:
            raise ConfigError(f"--model {self._tensors.folder}", _cut(problems))

    def _check_unread(self, source: SourceConfig) -> None:
        read = {name for parameter in self._parameters.values() for name in parameter.sources}
        unread = {name for name in self._tensors.names - read if not self._says_nothing(name)}
        if source.tied:
            unread.discard("lm_head.weight")
        predictors = self._predictors(unread, source)
        if rest := sorted(unread - predictors):
            scales = any(name.endswith(("_scale", "_scale_inv", "_zero_point", "_scales", "_qzeros")) for name in rest)
            raise UserError(
                f"--model {self._tensors.folder} holds {_named(rest)}, which the run's model has no parameter for; "
                + ("its weights are quantized: give the model in bfloat16, float16 or float32" if scales else
                   "its weights are of another model than its config.json")
            )  # fmt: skip
        if predictors:
            count = len({name.split(".")[2] for name in predictors})
            self.notes.append(f"multi-token-prediction layers are left out: {count}, of {len(predictors)} tensors")

    def _says_nothing(self, name: str) -> bool:
        """Whether a tensor follows from the config.json, or has no values (the shared experts of a model without)."""
        return name.endswith("rotary_emb.inv_freq") or 0 in self._tensors.headers[name].shape

    @staticmethod
    def _predictors(unread: set[str], source: SourceConfig) -> set[str]:
        """Tensors of multi-token-prediction layers, which follow the decoder's and join two inputs by eh_proj."""
        first = source.values["num_hidden_layers"]
        layers = [
            f"model.layers.{number}."
            for number in range(first, first + source.mtp_layers)
            if f"model.layers.{number}.eh_proj.weight" in unread
        ]
        return {name for name in unread if name.startswith(tuple(layers))} if layers else set()

    def _check_tied(self) -> None:
        names = ("lm_head.weight", "model.embed_tokens.weight")
        if names[0] in self._tensors.names and not self._tensors.same_values(*names):
            raise UserError(
                f"--model {self._tensors.folder}: tie_word_embeddings is true, and lm_head.weight is not the embedding; set it "
                "false in its config.json if lm_head.weight is right, or else remove that tensor"
            )
        self.notes.append("lm_head begins as a copy of the embedding, and is trained on its own from there")


def same_model(folder: Path, shape: ModelShape) -> ImportedWeights:
    """The weights of a model of the same shape, experts fused or one by one.

    Raises:
        UserError: an architecture that does not fit, another shape, or weights that are not those of its config.json.
    """
    source = read_source_config(folder)
    if source.is_dense:
        raise UserError(
            f"{folder} is a dense {source.model_type}, without experts; make them of its MLPs with --upcycle"
        )
    _check_equal(source, shape, set(_SAME))
    tensors = SafetensorsFolder(folder)
    architectures = {architecture.model_type: architecture for architecture in (GLM4_MOE, QWEN3_MOE, MIXTRAL)}
    architecture = architectures[source.model_type]
    parameters = {}
    for name, size in _run_parameters(shape):
        if is_expert_bias(name) and not architecture.correction_bias:
            parameters[name] = Parameter({}, lambda size=size: torch.zeros(size))
        elif name == "lm_head.weight" and source.tied:
            parameters[name] = Parameter({"model.embed_tokens.weight": size}, _as_it_is)
        elif ".mlp.experts." in name and name not in tensors.names:
            parameters[name] = _of_single_experts(name, size, architecture)
        else:
            there = name in tensors.names
            parameters[name] = Parameter({name if there else architecture.export_name(name): size}, _as_it_is)
    return ImportedWeights(tensors, source, parameters)


def _of_single_experts(name: str, size: Size, architecture: Architecture) -> Parameter:
    """A parameter of all experts, [E, 2F, D] or [E, D, F], from one tensor per expert and matrix."""
    prefix, kind = name.rsplit(".", 1)
    halves = _HALVES if kind == "gate_up_proj" else ("down_proj",)
    matrix_size = (size[1] // len(halves), size[2])
    matrices = [f"{prefix}.{expert}.{half}.weight" for expert in range(size[0]) for half in halves]
    return Parameter(
        {architecture.export_name(matrix): matrix_size for matrix in matrices},
        lambda *values: torch.cat(values).view(size),
    )


def upcycled(folder: Path, shape: ModelShape, initial: Initial) -> ImportedWeights:
    """The weights of a MoE that computes what a dense model computes.

    As sparse upcycling (arXiv 2212.05055) with the virtual groups of NVIDIA's (arXiv 2410.07524, section 3.2): the MLP is cut
    along its width. The shared experts take the first cuts, and the K experts that a token gets take the others: experts
    are copies in groups of K, whose router rows are equal at the start, so that a token chooses a group as a whole. Its
    scores are then equal, 1/K each where they are normalised, for which down_proj makes up.

    Args:
        initial: for the routers.

    Raises:
        UserError: not dense, or a shape that cannot be cut so.
    """
    source = read_source_config(folder)
    if not source.is_dense:
        raise UserError(f"--upcycle is for a dense model, but {folder} has experts; leave it out")
    if problems := _cutting_problems(source.values["intermediate_size"], shape):
        raise ConfigError(f"{folder} to the run's model", problems)
    _check_equal(source, shape, set(_SAME) - _OF_EXPERTS)
    tensors, cuts = SafetensorsFolder(folder), _Cuts(shape)
    parameters = {}
    for name, size in _run_parameters(shape):
        if name == "lm_head.weight" and source.tied:
            parameters[name] = Parameter({"model.embed_tokens.weight": size}, _as_it_is)
        elif ".mlp." in name and int(name.split(".")[2]) >= shape.first_k_dense_replace:
            parameters[name] = cuts.parameter(name, size, initial)
        else:
            parameters[name] = Parameter({name: size}, _as_it_is)
    return ImportedWeights(tensors, source, parameters)


def _cutting_problems(dense: int, shape: ModelShape) -> list[str]:
    width, chosen, experts = shape.moe_intermediate_size, shape.num_experts_per_tok, shape.n_routed_experts
    together = (shape.n_shared_experts + chosen) * width
    problems = []
    if dense != together:
        problems.append(
            f"the dense MLP is {dense} wide, and shared and chosen experts together {together}; make them equal"
        )
    if experts % chosen:
        problems.append(f"n_routed_experts {experts} is no multiple of num_experts_per_tok {chosen}; make it one")
    if not shape.norm_topk_prob or shape.n_group != 1:
        problems.append("upcycling needs norm_topk_prob true and n_group 1")
    return problems


@dataclass(frozen=True)
class _Cuts:
    """How a dense layer's MLP is cut along its width, and what each parameter of the MoE layer takes of it."""

    shape: ModelShape

    @property
    def shared(self) -> int:
        """The width that the shared experts take."""
        return self.shape.n_shared_experts * self.shape.moe_intermediate_size

    def of_experts(self) -> list[slice]:
        """The widths that the experts of a group take."""
        width = self.shape.moe_intermediate_size
        begins = (self.shared + cut * width for cut in range(self.shape.num_experts_per_tok))
        return [slice(begin, begin + width) for begin in begins]

    def parameter(self, name: str, size: Size, initial: Initial) -> Parameter:
        """A parameter of an MoE layer from the dense layer's MLP."""
        layer, kind = name.split(".mlp.")
        if kind == "gate.weight":
            return Parameter({}, lambda: self.router(name, size, initial))
        if kind == f"gate.{EXPERT_BIAS}":
            return Parameter({}, lambda: torch.zeros(size))
        if kind.startswith("shared_experts."):
            matrix = kind.split(".")[1]
            return Parameter(
                self._sources(layer, matrix), self.shared_down if matrix == "down_proj" else self.shared_half
            )
        if kind == "experts.gate_up_proj":
            return Parameter(self._sources(layer, *_HALVES), self.experts_gate_up)
        return Parameter(self._sources(layer, "down_proj"), self.experts_down)

    def _sources(self, layer: str, *matrices: str) -> dict[str, Size]:
        hidden = self.shape.hidden_size
        dense = self.shared + self.shape.num_experts_per_tok * self.shape.moe_intermediate_size
        return {
            f"{layer}.mlp.{matrix}.weight": (hidden, dense) if matrix == "down_proj" else (dense, hidden)
            for matrix in matrices
        }

    def router(self, name: str, size: Size, initial: Initial) -> torch.Tensor:
        """Random rows, equal within a group of K experts."""
        rows, chosen = torch.empty(size), self.shape.num_experts_per_tok
        initial(name, rows)
        return rows[::chosen].repeat_interleave(chosen, dim=0)

    def shared_half(self, gate_or_up: torch.Tensor) -> torch.Tensor:
        return gate_or_up[: self.shared]

    def shared_down(self, down: torch.Tensor) -> torch.Tensor:
        return down[:, : self.shared]

    def experts_gate_up(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return self._copied([torch.cat([gate[cut], up[cut]]) for cut in self.of_experts()])

    def experts_down(self, down: torch.Tensor) -> torch.Tensor:
        """Scaled by what the scores of a group, 1/K each, and the routed scaling factor make of it."""
        scale = self.shape.num_experts_per_tok / self.shape.routed_scaling_factor
        return self._copied([down[:, cut].float() * scale for cut in self.of_experts()])

    def _copied(self, group: list[torch.Tensor]) -> torch.Tensor:
        """[E, ...] of the experts of one group."""
        return torch.stack(group).repeat(self.shape.n_routed_experts // self.shape.num_experts_per_tok, 1, 1)


def shape_values(folder: Path, upcycle: bool = False) -> dict[str, Any]:
    """What a model's config.json must hold for the weights of a folder.

    Args:
        upcycle: the folder's model is dense. Its experts are then as many and as wide as `experts_of` says.

    Raises:
        UserError: a model that cannot be imported, or is dense without `upcycle`, or the other way round.
    """
    source = read_source_config(folder)
    if source.is_dense != upcycle:
        raise UserError(
            f"{folder} is a dense {source.model_type}; add --upcycle" if source.is_dense else
            f"--upcycle is for a dense model, but {folder} has experts; leave it out"
        )  # fmt: skip
    return {**source.values, **(experts_of(source.values["intermediate_size"]) if upcycle else {})}


def experts_of(dense: int) -> dict[str, Any]:
    """Experts of an MLP so wide that cost a token what the MLP does: 8, of which it gets 2 of half the width.

    As many as Mixtral has (arXiv 2401.04088); routing is `glm4_moe`'s, which exports with the default settings of a run.
    """
    chosen = 1 if dense % 2 else 2
    return {
        "first_k_dense_replace": 0,
        "moe_intermediate_size": dense // chosen,
        "n_routed_experts": 8,
        "n_shared_experts": 0,
        "num_experts_per_tok": chosen,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "scoring_func": "sigmoid",
    }


def _run_parameters(shape: ModelShape) -> Iterator[tuple[str, Size]]:
    """The parameters and persistent buffers of the run's model, by its own class."""
    with torch.device("meta"):
        model = RecipeMoeForCausalLM(RecipeMoeConfig.from_shape(shape))
    for name, tensor in model.state_dict().items():
        yield name, tuple(tensor.shape)


def _check_equal(source: SourceConfig, shape: ModelShape, names: set[str]) -> None:
    ours = shape.model_dump()
    if not shape.first_k_dense_replace:
        names = names - {"intermediate_size"}  # of no layer
    different = [
        f"{name} is {source.values[name]} there and {ours[name]} in the run's model; take theirs into its config.json"
        for name in sorted(names)
        if source.values[name] != ours[name]
    ]
    if different:
        raise ConfigError(f"{source.folder}/config.json", different)


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _by(size: Size) -> str:
    return "x".join(map(str, size)) or "a number"


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return f"tensor{'s' if len(names) > 1 else ''} {', '.join(repr(name) for name in names[:_MOST_NAMED])}{more}"


def _cut(problems: list[str]) -> list[str]:
    more = [f"and {len(problems) - _MOST_NAMED:,} more"] if len(problems) > _MOST_NAMED else []
    return problems[:_MOST_NAMED] + more
