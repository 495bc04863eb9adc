"""Scripts run as `python SCRIPT WORDS` runs them, inside this process: imports and the planner's caches are paid once."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

from tests.conftest import CPU, ROOT


def run_script(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a script of the project as `__main__`, in the project's folder on CPU; output captured, exit code not checked.

    Its folder comes first on `sys.path`, as with `python SCRIPT`. An exception that would be a traceback there is raised here.
    """
    arguments = [script, *map(str, words)]
    output, errors, here = io.StringIO(), io.StringIO(), os.getcwd()
    with (
        mock.patch.object(sys, "argv", arguments),
        mock.patch.object(sys, "path", [str((ROOT / script).parent), *sys.path]),
        mock.patch.dict(os.environ, CPU),
        redirect_stdout(output),
        redirect_stderr(errors),
    ):
        os.chdir(ROOT)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            errors.write(end.code if isinstance(end.code, str) else "")
        finally:
            os.chdir(here)
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())
