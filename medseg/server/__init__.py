"""Models as a service for one computer or a few: `medseg serve`.

A request is guarded (`guard`), taken in (`intake`), waits in a queue (`desk`), is computed by a thread (`work`) and
answered (`api`, `monai_label`). What belongs to a scan lies in a folder that only this user can read, for a stated time
(`spool`). Nothing that a request says is ever opened as a path or an address.
"""

from medseg.server.run import serve
from medseg.server.settings import Limits, Settings

__all__ = ["Limits", "Settings", "serve"]
