"""CLU's metric writers without TensorFlow: `from functa.training.clu_metric_writers import metric_writers`.

clu.metric_writers imports a SummaryWriter that needs TensorFlow. Before CLU is first imported, this
module puts functa's SummaryWriter in its place, so that all of CLU's writers work. It can go once CLU
imports TensorFlow only where it uses it.
"""

import importlib
import sys
import types

from functa.training.summary_writer import SummaryWriter

_REPLACED_MODULE = "clu.metric_writers.tf.summary_writer"

if "clu.metric_writers" not in sys.modules:  # otherwise a program has imported CLU's own
    _module = types.ModuleType(_REPLACED_MODULE, SummaryWriter.__doc__)
    _module.__dict__["SummaryWriter"] = SummaryWriter
    sys.modules[_REPLACED_MODULE] = _module

metric_writers = importlib.import_module("clu.metric_writers")
metric_writers.MetricWriter.register(SummaryWriter)
