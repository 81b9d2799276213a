"""What a config trains, apart from the text: the model, its objective, its step, its devices."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh

import mdm_jax as mdm
from mdm_jax import objectives
from mdm_jax.models.unembedding import unembedding
from mdm_jax.train.activations import rows_in_place
from mdm_jax.train.backends import make_attention
from mdm_jax.train.families import Family, make_family
from mdm_jax.train.mesh_choice import Divided, check_mesh, choose_mesh
from mdm_jax.train.meshes import AXES, batch_sharding, batch_ways, make_mesh, state_shardings
from mdm_jax.train.networks import Network, make_network
from mdm_jax.train.optimizers import adamw, learning_rate
from mdm_jax.train.state import Params, TrainState, create_state
from mdm_jax.train.step import Apply, jit_train_step

_INIT_FOLD = 2**32 - 1  # no training step has this number, so no noise shares the key


@dataclasses.dataclass(frozen=True, eq=False)
class Learner:
    """The model of a config and everything that trains it, but no text and no array.

    Attributes:
        config: the checked config, as plain dicts.
        mesh: the devices, which may be of a machine that is not here (see `build_learner`).
        family: the noise process, and the objective of each phase of the training.
        network: the model and how its parameters are sharded.
        apply: ``apply(params, inputs, dropout_key or None) -> outputs``, for what `objective`
            prepares.
        init: ``init(key) -> params``.
        optimizer: the optax transformation.
        learning_rate: its learning rate by step.
    """

    config: dict[str, Any]
    mesh: Mesh
    family: Family
    network: Network
    apply: Apply
    init: Callable[[jax.Array], Params]
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule

    @property
    def process(self) -> mdm.Process | None:
        """The noise process; None for the autoregressive objective."""
        return self.family.process

    @property
    def objective(self) -> mdm.Objective:
        """The objective that training ends with, whose bound is reported."""
        return self.family.objectives[-1][1]

    def phase_at(self, step: int) -> int:
        """Returns the index in ``family.objectives`` of what is trained at `step`."""
        return sum(first <= step for first, _ in self.family.objectives) - 1

    def create_state(self) -> TrainState:
        """Returns the state before the first step, a function of the config alone."""
        key = jax.random.fold_in(jax.random.key(self.config["seed"]), _INIT_FOLD)
        average = self.config["ema"]["decay"] > 0
        taught = self.family.teacher_every > 0
        guarded = self.config["train"]["skip_above"] > 0
        return create_state(
            key, self.init, self.optimizer, ema=average, teacher=taught, guard=guarded
        )

    def shardings(self) -> TrainState:
        """Returns a `NamedSharding` for each array of the state.

        Raises:
            ValueError: if an array does not divide over the mesh; the message names it.
        """
        return state_shardings(jax.eval_shape(self.create_state), self.mesh, self.network.rules)

    def steps(self) -> list[Callable]:
        """Returns the jitted step of each phase; each is compiled when it is first called."""
        shardings = self.shardings()
        return [
            jit_train_step(
                state_shardings=shardings,
                batch_sharding=batch_sharding(self.mesh),
                apply=self.apply,
                objective=objective,
                optimizer=self.optimizer,
                seed=self.config["seed"],
                ema_decay=self.config["ema"]["decay"],
                ema_warmup=self.config["ema"]["warmup"],
                accumulate=self.config["train"]["accumulate"],
                teacher_every=self.family.teacher_every,
                z_loss=self.config["train"]["z_loss"],
                skip_above=self.config["train"]["skip_above"],
            )
            for _, objective in self.family.objectives
        ]


def build_learner(config: dict[str, Any], vocab_size: int, mesh: Mesh | None = None) -> Learner:
    """Builds all of an experiment but its text.

    Args:
        config: what `fields.checked` returns.
        vocab_size: data ids, those of the tokenizer.
        mesh: the devices to train on; by default those here, as ``config.mesh`` says. It may be
            made of the devices of a `jax.experimental.topologies` description, to compile for a
            machine that is not here.

    Raises:
        ValueError: if a name is unknown, if two fields contradict each other, or if the model does
            not divide over the mesh. The message names the fields and what is valid.
    """
    family = make_family(config, vocab_size)
    _check_z_loss(config, family)
    if family.process is not None:
        vocab_size = family.process.vocab_size
    network = make_network(config["model"], vocab_size, family.num_ids)
    if mesh is None:
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        axes = choose_axes(config, family, network, devices=jax.device_count(), memory=memory)
        mesh = make_mesh(axes, slices=config["mesh"]["slices"])
    check_mesh(mesh.shape, _divided(config, network))
    network = network.attending(make_attention(config["model"]["attention"], mesh))
    apply, init = _functions(config, family, network, mesh)
    family = family._replace(
        objectives=tuple((at, _chunked(config, family, one, mesh)) for at, one in family.objectives)
    )
    rate = learning_rate(config["optimizer"], config["train"]["steps"])
    return Learner(
        config=config,
        mesh=mesh,
        family=family,
        network=network,
        apply=apply,
        init=init,
        optimizer=adamw(config["optimizer"], rate),
        learning_rate=rate,
    )


def choose_axes(
    config: Mapping[str, Any],
    family: Family,
    network: Network,
    *,
    devices: int,
    memory: int | None,
) -> dict[str, int]:
    """Returns ``config.mesh`` with the axes that are 0 chosen, see `mesh_choice.choose_mesh`.

    Args:
        config: what `fields.checked` returns.
        family: of the config.
        network: of the config.
        devices: how many there are to train on.
        memory: bytes of one of them; None where unknown, and then enough.

    Raises:
        ValueError: if no mesh will do.
    """
    section, settings = config["mesh"], config["train"]
    rows = family.rows_together
    batches = [
        Divided(
            *("train.batch_size", settings["batch_size"], ("data", "fsdp")),
            unit=rows * settings["accumulate"],
        ),
        Divided(
            "evaluation.batch_size", config["evaluation"]["batch_size"], ("data", "fsdp"), rows
        ),
    ]
    # Parameters, a gradient and two moments; an average and a teacher where there are any.
    copies = 4 + (config["ema"]["decay"] > 0) + (family.teacher_every > 0)
    copies -= 0.5 * (config["optimizer"]["moments"] == "bfloat16")
    return choose_mesh(
        {name: section[name] for name in AXES},
        batches + _divided(config, network),
        devices=devices,
        state_bytes=int(4 * copies * network.parameters),
        memory=memory,
        slices=section["slices"],
    )


def _divided(config: Mapping[str, Any], network: Network) -> list[Divided]:
    """What of the model and of a window must divide over a mesh."""
    return [*network.divided, Divided("data.length", config["data"]["length"], ("sequence",))]


def _functions(
    config: Mapping[str, Any], family: Family, network: Network, mesh: Mesh
) -> tuple[Apply, Callable[[jax.Array], Params]]:
    """`apply` and `init` of an experiment: the network's, and what the family adds to them."""
    chunked = config["train"]["loss_chunk"] > 0

    def call(params: Params, inputs: dict[str, Any], dropout_key: jax.Array | None) -> Any:
        with rows_in_place(mesh):
            if not chunked:
                return network.call(params, inputs, dropout_key)
            states = network.call(params, inputs, dropout_key, unembed=False)
        return mdm.Hidden(states, *unembedding(params))

    def apply(params: Params, inputs: Any, dropout_key: jax.Array | None) -> Any:
        if isinstance(inputs, tuple):
            return tuple(call(params, one, dropout_key) for one in inputs)
        return call(params, inputs, dropout_key)

    def init(key: jax.Array) -> Params:
        return network.init(key, config["data"]["length"])

    process = family.learned_noise
    if process is None:
        return apply, init
    return objectives.learned_apply(apply, process), objectives.learned_init(init, process)


def _check_z_loss(config: Mapping[str, Any], family: Family) -> None:
    """Refuses ``train.z_loss`` where there is no one array of logits."""
    weight, chunk = config["train"]["z_loss"], config["train"]["loss_chunk"]
    if not weight:
        return
    if not (family.one_call and family.logits):
        raise ValueError(
            f"train.z_loss={weight} with objective.name={config['objective']['name']!r}, whose "
            "model does not give one array of logits: set train.z_loss=0.0"
        )
    if chunk:
        raise ValueError(
            f"train.z_loss={weight} with train.loss_chunk={chunk}: a loss in chunks leaves out the "
            "logits of tokens that have no loss, which the z-loss counts. Set one of them to 0"
        )


def _chunked(
    config: Mapping[str, Any], family: Family, objective: mdm.Objective, mesh: Mesh
) -> mdm.Objective:
    """The objective in chunks of positions, if ``train.loss_chunk`` asks for them."""
    chunk = config["train"]["loss_chunk"]
    if not chunk:
        return objective
    if not family.one_call:
        raise ValueError(
            f"train.loss_chunk={chunk} with objective.name={config['objective']['name']!r}, which "
            "needs the logits of more than one call of the model: set train.loss_chunk=0"
        )
    # Nothing is lost at tokens that were not masked. Each device sorts its own rows, has a chunk of
    # its own, and sums the gradient of its own head before they are added up.
    skip, ways = isinstance(family.process, mdm.Masked), batch_ways(mesh)
    return mdm.chunked(objective, chunk * ways, skip_unnoised=skip, groups=ways)
