"""Profiles of hypothesis: ``pytest --hypothesis-profile=unshrunk`` reports the first failure as it
was found, which is much quicker.
"""

from hypothesis import Phase, settings

settings.register_profile("unshrunk", phases=[Phase.explicit, Phase.generate])
