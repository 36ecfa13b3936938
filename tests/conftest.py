"""Profiles of hypothesis: ``pytest --hypothesis-profile=unshrunk`` reports the first failure as it
was found, which is much quicker. And the check of shapes, see `tests.shapes`.
"""

from hypothesis import Phase, settings

from tests import shapes

shapes.install()  # before anything imports zoo
settings.register_profile("unshrunk", phases=[Phase.explicit, Phase.generate])
