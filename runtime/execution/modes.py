"""Where weights are while they do not work, from fast to lean; `offload` says what each does.

No torch: a plan is made of these before it is imported.
"""

MODES = ("none", "model", "block")
RESIDENT_BLOCKS = 2  # of a list in mode "block": one at work, and the next on its way
