"""The command line: `app` and what runs it; a module for each group of commands."""

from . import export as export
from . import generate as generate
from . import provenance as provenance
from . import show as show
from .app import app as app
from .app import main as main
from .app import run as run
from . import serve as serve
