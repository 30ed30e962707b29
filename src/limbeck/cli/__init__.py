"""The command line: limbeck plan | run | resume | capture | cache | evaluate | compare | chat | list | show | check | doctor.

Results go to stdout, progress and advice to stderr. Exit codes: 0 done, 1 a defect of limbeck, 2 the request is wrong,
3 impossible here, 4 the world failed, 5 it ran and the answer is no, 130 and 143 stopped and saved.
"""

import json
import logging
import os
import signal
import sys
import traceback
from typing import Any

import typer

from limbeck.errors import LimbeckError, Refused
from limbeck.text.show import visible

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Distils any trained model into a smaller, faster or differently built one.",
)
VARIABLES = ("LIMBECK_HOME", "LIMBECK_RUNS", "LIMBECK_LOG", "LIMBECK_CRASH_AT")


class Stop:
    """Ctrl-C and SIGTERM stop after the current step; a second one stops at once."""

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.hear)

    def hear(self, number: int, frame: Any) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        print("\nstopping after this step; again leaves now and loses what came after the last checkpoint", file=sys.stderr, flush=True)

    def __call__(self) -> bool:
        return bool(self.signal)


def main() -> None:
    """Runs a command; every error of ours is four lines, never a traceback."""
    import limbeck.cli.verbs  # noqa: F401  (registers the commands)

    as_json = "--json" in sys.argv
    try:
        for name in os.environ:
            if name.startswith("LIMBECK_") and name not in VARIABLES:
                raise Refused("key", "environment", f"one of {', '.join(VARIABLES)}", name, f"unset {name}")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TQDM_DISABLE", "1")  # our own progress speaks
        logging.basicConfig(level=os.environ.get("LIMBECK_LOG", "WARNING").upper(), format="%(levelname)s %(name)s %(message)s")
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except LimbeckError as error:
        sys.exit(told(error, as_json))
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is not None and len(sys.argv) < 2:  # click's own, with all that can be asked
            print(message())
            sys.exit(0)
        if message is not None:  # click's own: a wrong option or argument
            known = [word for word in sys.argv[1:2] if not word.startswith("-") and "No such command" not in message()]
            do = " ".join(["limbeck", *known, "--help"])
            sys.exit(told(Refused("usage", "command line", "a command as in limbeck --help", message(), do), as_json))
        traceback.print_exc()
        print("error[defect]  this is a defect of limbeck: please report it with the lines above", file=sys.stderr)
        sys.exit(1)


def told(error: LimbeckError, as_json: bool) -> int:
    """Prints an error of ours, and gives its code."""
    print(json.dumps(error.as_json()) if as_json else visible(str(error), 10_000, 20), file=sys.stdout if as_json else sys.stderr)
    return error.code
