"""How the demo checkpoints are made: documents with questions, laid into rows the way inference reads them.

The idea is to train the way inference works: a document is read once, and what the WiM loop asks at various places in
it hangs from these places as branches. Read in this order: document_maker.py (what the documents are about), trees.py (a
document and its branches, as tokens), rows.py (trees laid into rows of one length), context.py (who sees whom in a
row), objective.py, optimizer.py, trainer.py; then corpus.py and folder.py (what goes in and what comes out). The loop is in
session.py.
"""
