"""`recipe/evaluate_model.py downstream`: a run's checkpoint on its engine, or an exported folder, in the harness."""

from __future__ import annotations

import argparse
import importlib.util
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import recipe
from recipe.base.arguments import add_subject, check_exported, check_results, natural_int, positive_int
from recipe.base.errors import UserError
from recipe.base.output_paths import check_output_file
from recipe.base.ranks import is_first_rank, say
from recipe.data.token_folder import TokenFolder, check_vocabulary, vocabulary_end
from recipe.evaluation.display import aligned_table, where_results_are, write_scalars
from recipe.evaluation.downstream.request_progress import Requests
from recipe.reading.model_card import languages_of
from recipe.reading.origin import origin_of
from recipe.run.folder import load_run_folder
from recipe.run.records import DOWNSTREAM_RESULTS, write_record

if TYPE_CHECKING:  # they bring the harness, which may not be installed
    from recipe.evaluation.downstream.estimates import Score
    from recipe.evaluation.downstream.scoring import Scored

DESCRIPTION = "Scores of lm-evaluation-harness: of a run's checkpoint on the live engine, or of an exported folder."
EXAMPLE = """examples:
  python recipe/evaluate_model.py downstream --save-data work/downstream             (once, where there is a network)
  python recipe/evaluate_model.py downstream --save-data work/downstream --languages en,de
  deepspeed --num_gpus 8 recipe/evaluate_model.py downstream --run runs/a --data work/downstream
  python recipe/evaluate_model.py downstream --model exports/a --tasks xcopa_zh,piqa --data work/downstream \\
      --output scores.json"""
TASKS = Path(recipe.__path__[0]) / "configs" / "downstream"
DEFAULT_LANGUAGES = "en,zh"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subject = add_subject(parser)
    subject.add_argument("--save-data", type=Path, metavar="DIR", help="write the tasks' datasets there, and stop")
    parser.add_argument(
        "--languages",
        help="such as en,de: the groups of these languages, where --tasks is not given (default: those that --run was trained "
        f"on; without --run {DEFAULT_LANGUAGES})",
    )
    parser.add_argument("--tasks", help="tasks and groups (default: downstream_LANGUAGE of each language)")
    parser.add_argument(
        "--tasks-path", action="append", type=Path, default=[], help="folder with more task files (YAML)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="read datasets from there, as --save-data wrote them")
    parser.add_argument("--num-fewshot", type=natural_int, help="examples in the prompt (default: the task's)")
    parser.add_argument("--limit", type=positive_int, help="only the first so many of each task, for a trial")
    parser.add_argument("--batch-size", type=positive_int, default=8, help="requests per rank (default: %(default)s)")
    parser.add_argument("--items", type=Path, metavar="FILE", help="JSON for the bits and the answer of each item")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="set the scores against those of an earlier --items, item by item"
    )
    parser.add_argument("--output", type=Path, help="JSON for the scores (default with --run: results.json in it)")


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that do not go together, and an output that cannot be written."""
    if args.model and (args.checkpoint or args.deepspeed_config):
        parser.error("--checkpoint and --deepspeed_config go with --run")
    check_results(args, DOWNSTREAM_RESULTS)
    if args.items is not None:
        check_output_file("--items", args.items)


def run(args: argparse.Namespace) -> None:
    """Score what is asked for, under the launcher where it is a run; or save the datasets.

    Raises:
        UserError: no lm-evaluation-harness, and no such run, checkpoint, model, task or dataset.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("this needs lm-evaluation-harness; install it with pip install -e '.[downstream]'")
    if args.model is not None:
        check_exported(args.model)
    if args.compare is not None:
        from recipe.evaluation.downstream.comparison import read_items

        read_items(args.compare)  # refused before anything is scored
    if args.data is not None:
        os.environ["HF_HUB_OFFLINE"] = "1"
    silence_bars()
    from recipe.evaluation.downstream.harness import Datasets, known_tasks, load_tasks

    names = task_names(args)
    manager = known_tasks(names, [TASKS, *args.tasks_path])
    source = f"from {args.data}" if args.data else "from HuggingFace or its cache"
    say(f"loads the datasets of {', '.join(names)} {source}")
    if args.save_data is not None:
        with Datasets(args.save_data).saving():
            load_tasks(manager, names)
        print(f"saved the datasets of {', '.join(names)}; evaluate with --data {args.save_data}")
    else:
        (evaluate_run if args.run else evaluate_export)(args, tasks_of(args, manager, names))


def silence_bars() -> None:
    """Switch off the progress bars of the libraries below: tqdm's read the environment when they are imported."""
    for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    from transformers.utils import logging

    logging.disable_progress_bar()


def task_names(args: argparse.Namespace) -> list[str]:
    """The tasks and groups that are asked for: of the languages that the run was trained on, unless others are named.

    Raises:
        UserError: a language that is asked for has no group, or no language of the run has one.
    """
    if args.tasks is not None:
        return args.tasks.split(",")
    folders = [*args.tasks_path, TASKS]
    languages = args.languages.split(",") if args.languages else run_languages(args.run)
    known = {path.stem for folder in folders for path in folder.glob("downstream_*.yaml")}
    without = [language for language in languages if f"downstream_{language}" not in known]
    if without:
        message = (
            f"there is no group of tasks for {', '.join(without)}: write downstream_{without[0]}.yaml as in {TASKS}, and give its "
            "folder as --tasks-path, or name tasks with --tasks"
        )
        if args.languages or len(without) == len(languages):
            raise UserError(message)
        say(f"note: {message}")
    return [f"downstream_{language}" for language in languages if language not in without]


def run_languages(run_dir: Path | None) -> list[str]:
    """The languages that a run was trained on, as its token folder names them; the default ones where it does not."""
    languages = []
    if run_dir is not None:
        folder = TokenFolder(load_run_folder(run_dir)[0].data.tokens)
        languages = languages_of(folder.manifest, folder.sizes("train"))
    return languages or DEFAULT_LANGUAGES.split(",")


def tasks_of(args: argparse.Namespace, manager: Any, names: list[str]) -> dict[str, Any]:
    """The tasks of these names, with their datasets."""
    from recipe.evaluation.downstream.harness import Datasets, load_tasks

    with Datasets(args.data).used() if args.data else nullcontext():
        tasks = load_tasks(manager, names)
    if args.num_fewshot is not None:
        for task in tasks["tasks"].values():
            task.set_config(key="num_fewshot", value=args.num_fewshot)
    return tasks


def evaluate_run(args: argparse.Namespace, tasks: dict[str, Any]) -> None:
    from recipe.checkpoints.restore import RestorableRun
    from recipe.engine.session import session
    from recipe.evaluation.downstream.harness import EngineLM, scores_of_engine
    from recipe.evaluation.downstream.scoring import score_tasks
    from recipe.huggingface.tokenizer_folder import load_tokenizer

    restorable = RestorableRun(args.run, args.checkpoint, args.deepspeed_config)
    with session(restorable.run.watch), Requests([*tasks["tasks"].values()]) as requests:
        say(f"evaluates step {restorable.train_state.step:,} of {args.run} on {len(tasks['tasks'])} tasks")
        engine, state = restorable.restore()
        lm = EngineLM(
            scores_of_engine(engine, restorable.run.compute),
            load_tokenizer(restorable.run.tokenizer),
            engine.device,
            max_length=origin_of(args.run, restorable.number).context,  # as its export states, and so is evaluated
            batch_size=args.batch_size,
            advance=requests.advance,
        )
        scored = score_tasks(lm, tasks, limit=args.limit)
    if is_first_rank():
        output = args.output or args.run / DOWNSTREAM_RESULTS
        report(scored, output, {"step": state.step}, args.run / "tensorboard")
        report_items(scored, args.items, args.compare)


def evaluate_export(args: argparse.Namespace, tasks: dict[str, Any]) -> None:
    from transformers import AutoConfig

    vocab_size = getattr(AutoConfig.from_pretrained(args.model).get_text_config(), "vocab_size", None)
    # A model of others may have a vocabulary of another form, which transformers alone reads.
    if vocab_size is not None and (args.model / "tokenizer.json").is_file():
        check_vocabulary(vocabulary_end(args.model), vocab_size)
    from recipe.evaluation.downstream.harness import export_lm
    from recipe.evaluation.downstream.scoring import score_tasks

    say(f"evaluates {args.model} on {len(tasks['tasks'])} tasks")
    with Requests([*tasks["tasks"].values()]) as requests:
        scored = score_tasks(export_lm(args.model, args.batch_size, requests.advance), tasks, limit=args.limit)
    report(scored, args.output, {"model": str(args.model)})
    report_items(scored, args.items, args.compare)


def report(scored: Scored, output: Path | None, facts: dict[str, Any], board: Path | None = None) -> None:
    """Print the scores, then write them: to `output`, and to TensorBoard's folder `board` at the step of `facts`."""
    print(describe(scored), flush=True)
    if output is not None:
        write_record(output, {**facts, **scored.as_json()})
    if board is not None:
        write_scalars(board, scored.tags(), facts["step"])
    print(where_results_are(output, board), flush=True)


def report_items(scored: Scored, items: Path | None, compare: Path | None) -> None:
    """Print what has changed since the items of `compare`, and write those of now to `items`."""
    from recipe.evaluation.downstream.comparison import changes, read_items, write_items

    if compare is not None:
        of_tasks = changes(scored.items, read_items(compare))
        rows = [(task, metric, *_cells(score, "+")) for task, of in of_tasks.items() for metric, score in of.items()]
        print(f"\n{aligned_table(('task', 'metric', f'since {compare}', 'stderr, paired'), rows, left=2)}", flush=True)
    if items is not None:
        write_items(items, scored.items)


def describe(scored: Scored) -> str:
    """Tables of the scores and of the gaps between languages, and which tasks have no bits per byte."""
    rows = [(task, metric, *_cells(score)) for task, of in scored.tasks.items() for metric, score in of.items()]
    parts = [aligned_table(("task", "metric", "value", "stderr"), rows, left=2)]
    gaps = [
        (name, metric, *_cells(score, "+"), f"{gap['paired']:,}" if gap["paired"] else "not paired")
        for name, gap in scored.gaps.items()
        for metric, score in gap["metrics"].items()
    ]
    if gaps:
        parts.append(aligned_table(("gap", "metric", "first minus second", "stderr", "paired items"), gaps, left=2))
    tasks_of: dict[str, list[str]] = {}
    for task, why in scored.without_gold.items():
        tasks_of.setdefault(why, []).append(task)
    parts += [f"no bits per byte of {', '.join(tasks)}: {why}" for why, tasks in tasks_of.items()]
    return "\n\n".join(parts)


def _cells(score: Score, sign: str = "") -> tuple[str, str]:
    return f"{score['value']:{sign}.4f}", "" if score["stderr"] is None else f"{score['stderr']:.4f}"
