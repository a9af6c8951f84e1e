"""The program of a Space: the page of the adapter in space.json, or why it cannot be shown."""

import json
import os
from pathlib import Path

from hub.space.page import launch, make_notice, make_page

if __name__ == "__main__":
    shown = json.loads(Path(__file__).with_name("space.json").read_text(encoding="utf-8"))
    try:
        page = make_page(shown["adapter"], shown["revision"], fixed=True)
    except ValueError as error:
        page = make_notice(
            f"{error} If it is private, give this Space a token that may read it, as the secret HF_TOKEN in its "
            "settings."
        )
    launch(page, allowed_hosts=os.environ.get("ALLOWED_HOSTS", "").split())
