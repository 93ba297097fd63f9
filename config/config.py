"""Presets: --config config/config.py:NAME.

NAME is paper (the default), best, released, testbed, testbed_sd3, sdxl or sd3.

For a preset of your own, copy this file and change what you need:

    from dfusion.commands.config import get_config as preset

    def get_config():
        config = preset("paper")
        config.train.learning_rate = 3e-5
        return config

Every setting is documented in docs/settings.md, and printed by --help.
"""

from dfusion.commands.config import get_config

__all__ = ["get_config"]
