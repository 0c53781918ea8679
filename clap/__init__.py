"""CLAPs behind one interface: [`xacle.clap.encoder.ClapEncoder`].

Importing any module of this package registers M2D-CLAP with transformers' auto classes.
"""

from xacle.clap import m2d_modeling, m2d_processing

__all__ = ["m2d_modeling", "m2d_processing"]
