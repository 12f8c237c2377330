"""The command line: `app` and what runs it; a module for each group of commands."""

# In the order that `kinema --help` shows them.
# isort: off
from . import generate as generate
from . import profile as profile
from . import show as show
from . import provenance as provenance
from . import serve as serve
from . import api_keys as api_keys
from . import export as export
from . import bench as bench
from .app import app as app
from .app import main as main
from .app import run as run
