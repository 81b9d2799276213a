"""Training: state, step, optimizers, meshes, checkpoints, metrics and the loop that joins them.

Nothing here is needed to use the losses or the samplers. `step.train_step` is a pure function that
takes any `apply` and any `mdm_jax.objectives.Objective`; `loop.train` is the whole program.
"""
