"""Tool calling: how each family of models is offered tools, writes calls and reads results.

Pure: knows neither models nor links; of the frames only the parts about tools. To add a family:
a rule in `family.detect`, an entry beside it, and a round trip in the tests; a new way of writing
calls also needs a `Layout`, which `constraint` and `parse` must know.
"""
