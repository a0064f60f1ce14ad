"""The least that a Python server can do: an ASGI function, orjson, ONNX Runtime. No validation, no log, no release."""

import os
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson

NAMES = [f"f{number}" for number in range(10)]
HEADERS = [(b"content-type", b"application/json")]
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(os.environ["ONNX_MODEL"], options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message.get("more_body"):
            break
    row = orjson.loads(body)
    (predictions,) = session.run(None, {name: np.array([[row[one] for one in NAMES]], dtype=np.float32)})
    answer = orjson.dumps({"prediction": float(predictions.reshape(-1)[0])})
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": answer})
