"""Plain FastAPI and ONNX Runtime: what one writes in an afternoon."""

import os
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File

from tests.bench.servers.model import Model

app = FastAPI()
model = Model()


@app.post("/predict")
def predict(file: Annotated[bytes, File()]) -> dict[str, Any]:
    """Answer one picture, in one of Starlette's threads."""
    return model.answer(file)


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["BENCH_PORT"]), log_level="warning", access_log=False)
