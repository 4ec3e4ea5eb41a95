"""The steps of cleaning. How to write one:

A *row step* looks at one row at a time: `start(params)` returns a function `Batch -> Changes` (see `contract.py`).
Find candidates with one vectorised gate (`batch.matching(regex)`), touch only those in Python, return what is sparse:
new texts by index, reason codes by row, rows to leave out with a code, marks (one value a row) and spans. It never
changes the batch, never keeps state between batches, and gives the same for any cut into batches. Run twice, it
changes nothing the second time.

A *set step* needs all rows (copies, caps): `start(params)` returns an object with `look(batch) -> {name: array}` (runs
in several processes; arrays are spilled to disk) and `decide(store) -> Verdict` (runs once, over all rows, in numpy).

Then add the Step to `catalogue.py`, in its place, with a free bit, and its codes with their words beside it.
Mode "mark" needs nothing from a step: the pipeline then keeps its codes and marks and applies neither texts nor
removals. Tests run a step with `cleaning.run(ChosenStep(...), examples)`.
"""
