"""Draw demo.svg, the tables that `expunge demo` ends with: run the demo here, then render them.

`python docs/demo_svg.py` writes the file beside this script. The demo runs in a temporary
EXPUNGE_HOME, so the state of whoever draws it stays as it is.
"""

import io
import os
import re
import tempfile
from pathlib import Path

from expunge_pipelines.demo import run_demo
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from expunge_pipelines import show

COLUMNS = 108  # the longest line, the one that says what was not compared, and a margin
# Rich asks a web site for its font. A picture in a README may load nothing: the viewer's own then.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
FORMAT = FORMAT.replace("Fira Code", "DejaVu Sans Mono")
# Spaces lead right-aligned numbers; some viewers drop them, non-breaking or not, unless told.
FORMAT = FORMAT.replace("<svg ", '<svg xml:space="preserve" ', 1)


def main() -> None:
    """Write demo.svg."""
    with tempfile.TemporaryDirectory() as home:
        for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
            os.environ.pop(variable, None)
        os.environ["EXPUNGE_HOME"] = home
        result = run_demo(on_start=show.step_started)
    forgotten = result["forget"]
    # as it is in the folder where a reader runs the demo
    forgotten["report"] = str(Path(".expunge") / Path(forgotten["report"]).relative_to(home))
    console = Console(
        record=True, file=io.StringIO(), width=COLUMNS, force_terminal=True, highlight=False
    )
    show.forgetting(console, forgotten)
    drawing = console.export_svg(title="expunge demo", code_format=FORMAT, unique_id="demo")
    lines = (line.rstrip() for line in drawing.splitlines())
    Path(__file__).with_name("demo.svg").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
