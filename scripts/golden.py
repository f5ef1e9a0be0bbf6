"""Prints a model's golden vectors: what sentence-transformers gives in float32 for the texts below, cut to their heads.

Usage: python scripts/golden.py FOLDER. What it prints goes into the model's profile; a test compares the two.
"""

import json
import sys

COMPONENTS = 16
TEXTS = {
    # Punctuation, digits, capitals: what a wrong tokenizer treats otherwise.
    "Dr. O'Neill paid $3,499.99 for 2 GPUs on 21-Nov-2026.": "document",
    # Accents and other scripts, which a lower-casing tokenizer strips or splits.
    "Ein Übermaß an Süßigkeiten; 検索エンジン; быстрая лиса": "document",
    # Long enough that mean, first and last token pool to different vectors.
    "A lease is a worker's claim on a message. It is renewed while the worker works, given back when the worker stops, "
    "and runs out when the worker dies, so that another one takes the message and does its work again.": "query",
}


def main(folder: str) -> None:
    """Print a JSON line a text: text, input type, head."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": "float32"})
    for text, input_type in TEXTS.items():
        prompt = input_type if input_type in model.prompts else None
        vector = model.encode([text], prompt_name=prompt, normalize_embeddings=True)[0]
        head = [round(float(component), 7) for component in vector[:COMPONENTS]]
        print(json.dumps({"text": text, "input_type": input_type, "head": head}, ensure_ascii=False))


if __name__ == "__main__":
    main(sys.argv[1])
