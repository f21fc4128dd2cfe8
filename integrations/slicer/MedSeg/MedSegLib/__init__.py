"""What the module MedSeg is made of.

Only `widget.py` imports slicer, qt and ctk; `scene.py` works on the nodes that it is given. All else is plain Python
(3.9 or newer, standard library only), so that it runs and is tested without Slicer, and the command line module uses
it too. medseg itself is never imported: it runs as a program, in an environment of its own.
"""
