#!/usr/bin/env python3
"""Train until the schedule ends, through failures: starts the deepspeed launcher again from the newest intact checkpoint."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from launch.cluster import messages
from launch.cluster.allocation import add_allocation_arguments, allocation_of
from launch.cluster.decision import Decision, End, Failure, Outcome, Rules, decide, incident_in, outcome_of
from launch.cluster.incidents import Incident, incident_of, last_step
from launch.cluster.process_groups import processes_of, signal_group
from recipe.base.arguments import natural_int, natural_seconds, positive_seconds
from recipe.base.errors import UserError, exit_on_user_error, read_all
from recipe.base.files import write_json
from recipe.base.ranks import RESTART, STOP_SIGNALS
from recipe.base.run_config.resolved import ResolvedPhase
from recipe.base.tables import duration
from recipe.run.checkpoint_files import (
    check_convertible,
    complete,
    read_manifest,
    step_of,
    topology_of,
    universal_state,
)
from recipe.run.early_stop import asked_by_file
from recipe.run.folder import LOCK, LOCK_PATIENCE_S, STOP, SUPERVISOR_LOCK, check_run_folder, next_checkpoint
from recipe.run.heartbeats import read_heartbeats
from recipe.run.job import Job, check_job
from recipe.run.kept_budget import next_budgets
from recipe.run.locks import in_use, lock_file, lock_holder
from recipe.run.records import EVENTS, append_record, read_attempts, read_events, read_failures, root_causes

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = """examples:
  launch/train.sh --hostfile hosts --config recipe/configs/runs/X.yaml --deepspeed_config ds_configs/Y.json
  launch/train.sh --num_gpus 2 --config recipe/configs/runs/X.yaml --deepspeed_config ds_configs/cpu_2.json \\
      --set seed=1 -- --master_port 29501        (what follows -- goes to the deepspeed launcher)

SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 let the step end, save and stop; a second
signal ends the ranks at once, without saving (on other hosts within seconds).

exit code: 0 the schedule is done; 75 stopped as asked, the same command continues; 2 something that you must change."""
POLL_S = 0.5
REMOTE_END_S = (
    10.0  # for the launcher to end ranks on other hosts: a pkill by pdsh and a second (deepspeed/launcher/runner.py)
)
START_MARGIN_S = 5.0  # before a time limit, in which ranks that have nothing to save leave


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_allocation_arguments(parser)
    parser.add_argument("--config", required=True, type=Path, help="run config, YAML")
    parser.add_argument("--deepspeed_config", required=True, type=Path, help="ds_config, JSON")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the run config"
    )
    parser.add_argument(
        "--max-stalls",
        type=natural_int,
        default=3,
        help="restarts in a row without a new checkpoint (default: %(default)s)",
    )
    parser.add_argument(
        "--backoff", type=natural_seconds, default=10.0, metavar="SECONDS",
        help="before a restart; doubled with each stall (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--grace", type=natural_seconds, default=120.0, metavar="SECONDS",
        help="that ranks whose launcher has ended may take to save and leave (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--time-limit",
        type=positive_seconds,
        metavar="SECONDS",
        help="save and stop before so many seconds have passed",
    )
    parser.add_argument(
        "--step-down-on-oom", action="store_true", help="out of memory: halve the micro-batch, double the accumulation"
    )
    words = sys.argv[1:] if argv is None else argv
    at = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:at])
    args.launcher = words[at + 1 :]
    return args


class Supervisor:
    """See the module's text.

    Raises:
        UserError: from the constructor, before anything is written: inputs that cannot work, too few hosts, or another
            process that trains in the run folder.
    """

    def __init__(self, args: argparse.Namespace):
        self.began = time.monotonic()
        self.signals = 0
        self.holds_run = False
        self.group: int | None = None  # process group of what runs for us: the launcher, or the resharding
        self.starts_before = 0  # attempts there were when the launcher was started
        self.start_ended = False  # the launcher was ended before its ranks trained
        for number in STOP_SIGNALS:
            signal.signal(number, self._asked)
        self.args = args
        self.ds_path: Path = args.deepspeed_config
        # The problems of both at once; the folder is known with the run config.
        self.allocation, self.job = read_all(partial(allocation_of, args, args.launcher, Path()), self._check_job)
        self.run_dir = self.allocation.folder = self.job.run.run_dir
        self.allocation.check(self.job.ds.world_size)
        self.allocation.check_programs()
        check_run_folder(self.job, resumes=True)  # the ranks do so too, after a checkpoint was resharded for them
        self.lock = self._take_run()
        self.holds_run = True
        self.stop_file.unlink(missing_ok=True)  # of somebody who asked before; from here on it is ours to keep

    def _check_job(self) -> Job:
        # A port of this host says nothing of rank 0's, and of ranks that still end.
        return check_job(self.args.config, self.args.set, self.ds_path, None, port_may_be_in_use=True)

    def _take_run(self) -> IO[str]:
        """Hold the run until this process ends, so that no other supervisor starts or stops it.

        A Slurm job may find what is left of the job before it, which is about to end; a person is told at once.
        """
        patience_s = LOCK_PATIENCE_S if self.args.slurm else 0.0
        self._refuse_running_ranks(patience_s)
        if (holder := lock_holder(self.run_dir / SUPERVISOR_LOCK)) is not None and not patience_s:
            raise in_use(self.run_dir, holder)
        return lock_file(
            self.run_dir / SUPERVISOR_LOCK, subject=self.run_dir, note="launch/train.sh", patience_s=patience_s
        )

    def _refuse_running_ranks(self, patience_s: float) -> None:
        """Raise UserError while a rank 0 holds the run: of another launch, or of an attempt of ours that still ends."""
        deadline, told = time.monotonic() + patience_s, False
        while (holder := lock_holder(self.run_dir / LOCK)) is not None:
            if self.signals:
                return
            if time.monotonic() >= deadline:
                raise in_use(self.run_dir, holder)
            if not told:
                told = True
                tell(f"{holder} still trains in {self.run_dir}; waiting up to {patience_s:.0f} s for its end")
            time.sleep(POLL_S)

    @property
    def stop_file(self) -> Path:
        return self.run_dir / STOP

    def run(self) -> int:
        """Start and restart; returns the exit code."""
        try:
            return self._restart_until_the_end()
        finally:
            # Ranks that are still there, on other hosts, have yet to see it.
            with suppress(OSError, UserError):  # a file that stays is removed by the next start
                if lock_holder(self.run_dir / LOCK) is None:
                    self.stop_file.unlink(missing_ok=True)

    def _restart_until_the_end(self) -> int:
        stalls = 0
        while True:
            step_before = self._newest_step()
            self.starts_before, self.start_ended = self._attempts(), False
            code = self._attempt()
            end = self._end_of_attempt(code)
            outcome = outcome_of(end)
            if outcome is Outcome.FINISHED:
                tell(
                    f"the schedule is done, {duration(time.monotonic() - self.began)} after this start; see {self.run_dir}"
                )
                return 0
            if outcome is Outcome.STOPPED:
                return self._stopped()
            if outcome is Outcome.REFUSED:  # they say why themselves, and no attempt has ended
                raise UserError("not restarted: the ranks refused to start; see the error above")
            incident = incident_in(end) or incident_of(self.run_dir, self._attempts(), code)
            decision = self._decide(incident, code, stalls, advanced=self._newest_step() > step_before)
            stalls = decision.stalls
            self._carry_out(decision)
            self._record(incident, code, decision)
            if decision.give_up is not None:
                raise UserError(decision.give_up)
            self._wait(decision.backoff_s)
            if self._stop_is_asked({}):
                return self._stopped()

    def _stopped(self) -> int:
        tell(messages.stopped(self._next_step()))
        return RESTART

    def _end_of_attempt(self, code: int) -> End:
        began = self._attempts() > self.starts_before
        event = self._last_event() if began else {}
        return End(code, began, event, self._stop_is_asked(event))

    def _decide(self, incident: Incident, code: int, stalls: int, *, advanced: bool) -> Decision:
        """`decide`, with what this run's ds_config and hosts allow."""
        args = self.args
        micro_batch = self._failed_phase().ds_raw["train_micro_batch_size_per_gpu"]
        rules = Rules(self.run_dir, args.max_stalls, args.backoff, args.step_down_on_oom, micro_batch)
        bad_hosts = frozenset(host for rank in incident.ranks if (host := self.allocation.host_of(rank)) is not None)
        no_spare = self.allocation.problem_without(bad_hosts, self.job.ds.world_size)
        budgets = next_budgets(self.run_dir, self.job) if incident.kind == "out_of_memory" else []
        kept_gib = next((budget.gib for budget in budgets if budget.lowered), None)
        return decide(Failure(incident, code, stalls, advanced, bad_hosts, no_spare, kept_gib), rules)

    def _carry_out(self, decision: Decision) -> None:
        """Change what the next attempt is started with."""
        if decision.leave_out:
            self.allocation.leave_out(set(decision.leave_out))
        if decision.blame is not None:
            self.allocation.blame(decision.blame)
        if decision.step_down:
            self._step_down()

    def _stop_is_asked(self, event: dict[str, Any]) -> bool:
        """By a signal, or by a file or the time limit where no rank trained that could answer them."""
        return bool(self.signals) or (not event and (asked_by_file(self.stop_file) or self._limit_is_near()))

    def _limit_is_near(self) -> bool:
        limit_s = self.args.time_limit
        if limit_s is not None:
            left_s = limit_s - (time.monotonic() - self.began)
        elif "SLURM_JOB_END_TIME" in os.environ:
            left_s = float(os.environ["SLURM_JOB_END_TIME"]) - time.time()
        else:
            return False
        return left_s < START_MARGIN_S

    def _last_event(self) -> dict[str, Any]:
        """The newest attempt's last event of its own state: started, finished, stopped or rewind."""
        number, kinds = self._attempts(), ("started", "finished", "stopped", "rewind")
        events = read_events(self.run_dir)
        ours = [e for e in events if e["attempt"] == number and e["event"] in kinds]
        return ours[-1] if ours else {}

    def _step_down(self) -> None:
        """Half the micro-batch and twice the accumulation from now on; of a run in phases, in the one that ran out of memory."""
        phase = self._failed_phase()
        if self.job.config.phases:
            half = phase.ds_raw["train_micro_batch_size_per_gpu"] // 2
            self.args.set.append(f"phases.{phase.number}.micro_batch={half}")
        else:
            raw = dict(phase.ds_raw)
            raw["train_micro_batch_size_per_gpu"] //= 2
            raw["gradient_accumulation_steps"] *= 2
            self.ds_path = self.run_dir / "ds_config.stepped_down.json"
            write_json(self.ds_path, raw)
        self.job = self._check_job()

    def _failed_phase(self) -> ResolvedPhase:
        """The phase in which the newest attempt ran out of memory, as the first of its ranks that did says."""
        causes = root_causes(read_failures(self.run_dir, self._attempts()))
        number = int(causes[0].get("phase", 0)) if causes else 0
        return self.job.phases[min(number, len(self.job.phases) - 1)]

    def _attempt(self) -> int:
        """Run the launcher once, to the end of all its processes on this host; returns its exit code."""
        self._reshard()
        self._refuse_running_ranks(LOCK_PATIENCE_S)
        if self._stop_is_asked({}):
            return RESTART
        words = self.allocation.command(self.job.ds.world_size)
        script: list[object] = [
            ROOT / "recipe/train.py",
            "--config",
            self.args.config,
            "--deepspeed_config",
            self.ds_path,
        ]
        script += [word for override in self.args.set for word in ("--set", override)]
        script += ["--resume", "auto"]
        if self.args.time_limit is not None:
            script += ["--time-limit", self.args.time_limit - (time.monotonic() - self.began)]
        words += self.allocation.typed([str(word) for word in script])
        if self._stop_is_asked({}):
            return RESTART
        hosts = self.allocation.chosen or self.allocation.hosts
        tell(messages.starting(self._attempts() + 1, self.job.ds.world_size, hosts, self._next_step()))
        tell(f"command: {shlex.join(words)}")
        return self._run_group(words)

    def _run_group(self, words: list[str]) -> int:
        """Run a command in a process group of its own, which a terminal's ctrl-C does not reach; it ends before this does."""
        process = subprocess.Popen(words, start_new_session=True)
        self.group = process.pid
        try:
            if self.signals:  # asked while it was being started
                self._ask_to_stop()
            while True:
                try:
                    return process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    self._look_for_a_stop()
        finally:
            end_group(process.pid, self.args.grace)
            self.group = None

    def _look_for_a_stop(self) -> None:
        """End a start that is asked to stop. The run goes on where the file system does not answer: the next look is soon."""
        with suppress(OSError):
            if (
                (asked_by_file(self.stop_file) or self._limit_is_near())
                and not self.start_ended
                and self._is_starting()
            ):
                self._end_start()

    def _is_starting(self) -> bool:
        """Whether the ranks of the newest attempt have yet to tell that they train: by an event, or on a full disk by a heartbeat."""
        if (number := self._attempts()) == self.starts_before:
            return True
        beats = read_heartbeats(self.run_dir / "heartbeats", number)
        return not self._last_event() and not any(beat.step > 0 for beat in beats.values())

    def _end_start(self) -> None:
        """Nothing is to be saved yet: end the launcher and its ranks, on other hosts through the launcher."""
        self.start_ended = True
        tell("asked to stop before the ranks train: ending the launcher and its ranks; there is nothing to save")
        if self.group is not None:
            signal_group(self.group, signal.SIGTERM)

    def _reshard(self) -> None:
        """Bring the checkpoint that comes next into its universal form if this run has another topology.

        Raises:
            UserError: it cannot be.
        """
        if (newest := next_checkpoint(self.run_dir)) is None:
            return
        written, here = read_manifest(newest)["topology"], topology_of(self.job.ds)
        if written == here:
            return
        check_convertible(newest, written, here)
        if universal_state(newest) != "ready":
            tell(f"{newest.name} is of {written['world_size']} ranks; resharding it for {here['world_size']}")
            reshard = [sys.executable, str(ROOT / "launch/reshard.py"), "--run", str(self.run_dir)]
            code = self._run_group([*reshard, "--checkpoint", newest.name])
            if code and not self._stop_is_asked({}):
                raise UserError(
                    f"{newest} could not be resharded (see above); give the ds_config that it was written with"
                )

    def _record(self, incident: Incident, code: int, decision: Decision) -> None:
        """Append the end of an attempt to events.jsonl."""
        backoff_s = 0.0 if decision.give_up is not None else decision.backoff_s
        consequence = decision.give_up or f"restart in {backoff_s:.0f} s"
        number, newest = self._attempts(), self._newest_step()
        events = [e for e in read_events(self.run_dir) if e["event"] in ("checkpoint", "started")]
        since = events[-1]["time"] if events else time.time()
        started = [e["time"] for e in events if e["event"] == "started" and e["attempt"] == number]
        reached = last_step(self.run_dir, number, started[-1] if started else time.time())
        event: dict[str, Any] = {
            "time": time.time(),
            "attempt": number,
            "event": "attempt_ended",
            "step": max(newest, reached or 0),  # a heartbeat may be older than the newest checkpoint
            "code": code,
            "kind": incident.kind,
            "rank": incident.rank,
            "host": incident.host if incident.rank is None else self.allocation.host_of(incident.rank) or incident.host,
            "lost_steps": max(0, (reached or 0) - newest),
            "lost_s": max(0.0, time.time() - since),
            "backoff_s": backoff_s,
            "excluded_hosts": sorted(self.allocation.excluded),
            "message": f"{incident.message}; {consequence}",
        }
        append_record(self.run_dir / EVENTS, event)
        tell(messages.ended(number, code, incident.message, event["step"], newest))
        alone = len(self.allocation.hosts) == 1
        blamed = None if decision.blame is None or alone else self.allocation.host_of(decision.blame)
        for sentence in messages.next_start(number, decision, self._next_step(), blamed, self.allocation.excluded):
            tell(sentence)

    def _asked(self, number: int, _: object) -> None:
        self.signals += 1
        self._tell_signal(signal.Signals(number).name)
        if not self.holds_run:  # nothing of ours runs or is written
            raise SystemExit(RESTART)
        self._ask_to_stop()

    def _tell_signal(self, name: str) -> None:
        """From a signal's handler, which may have interrupted a print."""
        if not self.holds_run:
            message = f"{name}: stopped before anything was started"
        elif self.group is None:
            message = f"{name}: stopping; no ranks run now"
        elif self.signals == 1:
            message = (
                f"{name}: the ranks finish their step, save and stop; a second signal ends them at once, without saving"
            )
        else:
            message = f"{name} again: ending the ranks at once, without saving"
        with suppress(OSError):
            os.write(1, f"supervisor: {message}\n".encode())

    def _ask_to_stop(self) -> None:
        if self.signals > 1 and self.group is not None:
            self._end_at_once(self.group)
            return
        try:
            self.stop_file.touch()
        except OSError:  # such as a full disk: what runs is told without a file
            if self.group is not None:
                signal_group(self.group, signal.SIGTERM)
            return
        if self.group is not None:
            self._look_for_a_stop()

    def _end_at_once(self, group: int) -> None:
        """What ends ranks of other hosts, at SIGTERM, is the launcher here, so it gets the time to."""
        if self.allocation.remote and self.signals == 2:
            signal_group(group, signal.SIGTERM)
            kill = threading.Timer(REMOTE_END_S, self._kill, (group,))
            kill.daemon = True
            kill.start()
        else:
            signal_group(group, signal.SIGKILL)

    def _kill(self, group: int) -> None:
        if self.group == group:
            signal_group(group, signal.SIGKILL)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stop_is_asked({}):
            time.sleep(0.1)

    def _attempts(self) -> int:
        return len(read_attempts(self.run_dir))

    def _newest_step(self) -> int:
        checkpoints = complete(self.run_dir / "checkpoints")
        return step_of(checkpoints[-1]) if checkpoints else 0

    def _next_step(self) -> int:
        """Of the checkpoint that the next start goes on from; a rewind goes on from an older one than the newest."""
        checkpoint = next_checkpoint(self.run_dir)
        return step_of(checkpoint) if checkpoint is not None else 0


def tell(message: str) -> None:
    print(f"supervisor: {message}", flush=True)


def end_group(group: int, grace_s: float) -> None:
    """Let what is left of a process group save and leave, then kill it: no rank outlives its launcher."""
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 30.0)):
        if not (left := processes_of(group)):
            return
        told = "they may save and leave" if number == signal.SIGTERM else "they are killed"
        tell(f"{len(left)} processes outlived their launcher, {number.name}: {told}; waiting up to {patience_s:.0f} s")
        signal_group(group, number)
        deadline = time.monotonic() + patience_s
        while processes_of(group) and time.monotonic() < deadline:
            time.sleep(0.2)


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    return Supervisor(parse(argv)).run()


if __name__ == "__main__":
    sys.exit(main())
