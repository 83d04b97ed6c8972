"""The token embedding and the output head; tied ones read one table, at the precision of the head.

float32             Gather rows; a tied head is Gemm with the table transposed
float16, bfloat16   rows are cast after Gather, a tied head casts the table (folded at load)
int8, int4          rows and their scales are gathered and multiplied; a tied head is MatMulInt8 or MatMulInt4
"""

from dataclasses import dataclass

import onnx

from tailcut.export.forms import integer_form
from tailcut.export.functions import NIBBLES
from tailcut.export.graph import Graph
from tailcut.export.layouts import Linears
from tailcut.export.quantise import HALVES, quantise, to_half
from tailcut.export.spec import DecoderSpec
from tailcut.export.weights import Weights
from tailcut.kernels.stored import DOMAIN
from tailcut.quantised import GROUP


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Reads and writes tokens: `look_up` at the input, `logits` at the output of one graph."""

    graph: Graph
    weights: Weights
    linears: Linears
    spec: DecoderSpec

    @property
    def table(self) -> str:
        """Name of the table's first initializer."""
        return f"{self.spec.embedding}.weight"

    def look_up(self, input_ids: str) -> str:
        """Token ids [batch, sequence] -> rows float32 [batch, sequence, width]."""
        self._write()
        precision, graph = self.linears.storage.head, self.graph
        rows = graph.op("Gather", graph.again(self.table), input_ids, axis=0)
        if precision == "float32":
            return rows
        if precision in HALVES:
            return graph.op("Cast", rows, to=onnx.TensorProto.FLOAT)
        scales = graph.op("Gather", graph.again(f"{self.table}.scales"), input_ids, axis=0)
        if precision == "int8":
            column = graph.op("Unsqueeze", scales, graph.constant([-1]))
            return graph.op("Mul", graph.op("Cast", rows, to=onnx.TensorProto.FLOAT), column)
        return graph.op("Mul", self._first_columns(graph.op(NIBBLES, rows, domain=DOMAIN)), self._spread(scales))

    def logits(self, x: str) -> str:
        """x [batch, sequence, width] -> logits [batch, sequence, vocab]."""
        spec, graph, precision = self.spec, self.graph, self.linears.storage.head
        if not spec.tied:
            return self.linears.apply(x, spec.head, spec.vocab, spec.width)
        self._write()
        if precision in ("int8", "int4"):
            return self.linears.multiply(x, spec.embedding, spec.head)
        table = graph.again(self.table)
        if precision in HALVES:
            table = graph.op("Cast", table, to=onnx.TensorProto.FLOAT)
        flat = graph.op(
            "Gemm", graph.op("Reshape", x, graph.constant([-1, spec.width])), table, transB=1, name=spec.head
        )
        head = graph.op("Shape", x, end=2)
        return graph.op("Reshape", flat, graph.op("Concat", head, graph.constant([spec.vocab]), axis=0))

    def _write(self) -> None:
        """Store the table at first use."""
        precision, name = self.linears.storage.head, self.spec.embedding
        if self.table in self.graph.data:
            return
        table = self.weights.table(name, self.spec.width)
        if precision in ("int8", "int4"):
            self.linears.write(name, integer_form(*quantise(table, precision), "dense"))  # Gather needs whole rows
        else:
            self.graph.weight(self.table, table if precision == "float32" else to_half(table, precision))

    def _first_columns(self, rows: str) -> str:
        if self.spec.width % 2 == 0:
            return rows
        last = self.graph.constant([-1])
        return self.graph.op("Slice", rows, self.graph.constant([0]), self.graph.constant([self.spec.width]), last)

    def _spread(self, scales: str) -> str:
        """[batch, sequence, groups] -> [batch, sequence, width]."""
        graph, constant = self.graph, self.graph.constant
        repeated = graph.op("Expand", graph.op("Unsqueeze", scales, constant([-1])), constant([1, 1, 1, GROUP]))
        whole = graph.op("Reshape", repeated, constant([0, 0, -1]))
        if self.spec.width % GROUP == 0:
            return whole
        return graph.op("Slice", whole, constant([0]), constant([self.spec.width]), constant([-1]))
