"""Sampling options as numbers: what a run's prior or its evaluation says of those that were not given."""

from collections.abc import Sequence
from dataclasses import asdict, replace

from pipeline.errors import UsageError
from pipeline.runs.evaluation import Evaluation, Setting, evaluation_file, read_evaluation
from pipeline.runs.layout import RunFolder
from pipeline.runs.loading import LoadedPrior, LoadedVQVAE, priors_sha256
from stage2_prior import SamplingOptions


def resolve(
    options: SamplingOptions, folder: RunFolder, vqvae: LoadedVQVAE, priors: Sequence[LoadedPrior]
) -> SamplingOptions:
    """The options with guidance, its schedule and temperature decided; those that are given already stay.

    Raises UsageError where "best" is known of no such model, and where a schedule would change nothing; CheckpointError
    for an evaluation that is damaged.
    """
    if options.guidance == "best":
        best = _best_setting(folder, vqvae, priors)
        return SamplingOptions(**asdict(best), top_k=options.top_k, top_p=options.top_p)
    guidance = _default_guidance(priors) if options.guidance is None else options.guidance
    schedule = options.guidance_schedule or "constant"
    if guidance == 1 and schedule != "constant":
        raise UsageError(
            f"--guidance-schedule {schedule} goes from 1 to the scale of --guidance, which is 1 here; give "
            "--guidance 3 or another scale, or leave the schedule out"
        )
    temperature = 1.0 if options.temperature is None else options.temperature
    return replace(options, guidance=guidance, guidance_schedule=schedule, temperature=temperature)


def _default_guidance(priors: Sequence[LoadedPrior]) -> float:
    """That of the first level; 1 where a level could not follow it, having been trained without label dropout."""
    if not all(prior.config.model.can_be_guided for prior in priors):
        return 1.0
    return priors[0].config.guidance if priors else 1.0


def _best_setting(folder: RunFolder, vqvae: LoadedVQVAE, priors: Sequence[LoadedPrior]) -> Setting:
    if not vqvae.config.model.is_discrete:
        raise UsageError(
            f"the codes of a {vqvae.config.model.bottleneck} bottleneck are numbers: there is no --guidance of them, "
            "and so no best one"
        )
    guided = all(prior.config.model.can_be_guided for prior in priors)
    compared = "--guidance 1,1.5,2,3" if guided else "--temperature 0.8,0.9,1"
    evaluation, path = read_evaluation(folder), evaluation_file(folder)
    if evaluation is None:
        problem = f"there is no {path} yet, which --guidance best reads"
    elif differing := differing_hashes(evaluation, vqvae, priors):
        problem = f"{path} is of another model than --guidance best is asked for: {'; '.join(differing)}"
    elif evaluation.best is None:
        problem = f"{path} has compared no settings, of which --guidance best could take one"
    else:
        return evaluation.best
    raise UsageError(f"{problem}; run `gen evaluate {folder.path} {compared}`")


def differing_hashes(evaluation: Evaluation, vqvae: LoadedVQVAE, priors: Sequence[LoadedPrior]) -> list[str]:
    """The hashes of a loaded run that are not those of the model that was evaluated, in words."""
    now = {
        "codes_sha256": vqvae.codes_sha256,
        "decoder_sha256": vqvae.decoder_sha256,
        "prior_sha256": priors_sha256(priors),
    }
    return [
        f"{name} {there[:12]}, not {value[:12]}"
        for name, value in now.items()
        if (there := getattr(evaluation, name)) != value
    ]
