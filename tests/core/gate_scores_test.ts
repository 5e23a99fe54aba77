import assert from "node:assert/strict";
import { scoreByGate } from "../../core/backend/gate.ts";
import { HOST_TENSORS } from "../../core/backend/tensor.ts";
import { gateScores } from "../../core/measure/gate_scores.ts";

Deno.test("gateScores() norms each row, multiplies and adds the bias", () => {
  const gate = {
    weights: Float32Array.of(1, 0, 0, 0, 0.5, 0.5, 0.5, 0.5),
    bias: Float32Array.of(0, -1),
    epsilon: 0.25,
  };
  const hidden = Float32Array.of(3, 1, 1, 2, 0, 0, 0, 0);
  // Mean squares 15/4 and 0; with ε the roots are 2 and 1/2.
  assert.deepEqual(gateScores(gate, hidden, 2), Float32Array.of(1.5, 0.75, 0, -1));
  assert.deepEqual(gateScores(gate, new Float32Array(0), 0), new Float32Array(0));
});

Deno.test("gateScores() refuses lengths that don't fit, and says which", () => {
  const gate = { weights: new Float32Array(6), bias: new Float32Array(2), epsilon: 1e-5 };
  const message = "Cannot gate 2 rows of 5 floats by 2 heads of 6 weights";
  assert.throws(() => gateScores(gate, new Float32Array(5), 2), { name: "RangeError", message });
  assert.throws(() => gateScores({ ...gate, bias: new Float32Array(4) }, new Float32Array(6), 2), RangeError);
});

Deno.test("scoreByGate() takes the backend's product where it has one, else core's own", async () => {
  const gate = { weights: Float32Array.of(1, 2, 3, 4), bias: Float32Array.of(0.5, -1), epsilon: 1e-6 };
  const tensors = HOST_TENSORS, hidden = Float32Array.of(1, -1), own = Float32Array.of(7, 8);
  assert.deepEqual(await scoreByGate({ tensors }, gate, hidden, 1), gateScores(gate, hidden, 1));
  assert.equal(await scoreByGate({ tensors, gateScores: () => Promise.resolve(own) }, gate, hidden, 1), own);
  await assert.rejects(scoreByGate({ tensors }, gate, hidden, 2), RangeError);
});
