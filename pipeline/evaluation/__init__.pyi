from .presets import cube_trials as cube_trials
from .presets import preset_trials as preset_trials
