"""Build the site of the documentation into build/site: prepare the pages, let Zensical build them
strictly, check what came out.

    python -m docs.site         exit code 1 where a page, a link or an entry is wrong
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from docs.site.check import problems
from docs.site.prepare import BUILD, prepare
from docs.site.sources import ROOT
from zoo.errors import ZooError


def main() -> int:
    try:
        prepare()
    except ZooError as error:
        print(error, file=sys.stderr)
        return 1
    for left in ("site", ".cache"):  # a kept cache leaves pictures out
        shutil.rmtree(BUILD / left, ignore_errors=True)
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "-f", "mkdocs.yml"],
        cwd=BUILD,
        env=os.environ | {"PYTHONPATH": python_path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout.partition("Traceback")[0] if "--strict" in done.stdout else done.stdout)
    if done.returncode:
        return 1
    found = problems(BUILD / "site")
    print("\n".join(found) or f"{len(list((BUILD / 'site').rglob('*.html')))} pages, every link leads somewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
