"""Golden vectors: what a reference implementation gave. Data: scripts/golden.py makes them, and a test compares.

There are none for models whose weights could not be had where this was written. What they are for is in the worker's
probes.py.
"""

from embedfleet.models import Golden

# sentence-transformers, float32.
# fmt: off
MINILM = (
    Golden(
        "Dr. O'Neill paid $3,499.99 for 2 GPUs on 21-Nov-2026.",
        "document",
        (
            -0.0605038, 0.0115889, 0.0215408, 0.034801, 0.0209624, -0.1187791, -0.0105289, 0.1097694, 0.0225112,
            0.0007483, -0.0426683, 0.0260302, 0.0198513, -0.0255844, -0.0825987, -0.0078003,
        ),
    ),
    Golden(
        "Ein Übermaß an Süßigkeiten; 検索エンジン; быстрая лиса",
        "document",
        (
            -0.0596158, -0.0002969, -0.0197029, 0.0431613, 0.0100609, 0.0643385, 0.1585642, 0.0703307, -0.0449109,
            -0.0688347, -0.0136666, 0.0026058, 0.0215246, 0.0172707, -0.1634248, 0.0456623,
        ),
    ),
    Golden(
        "A lease is a worker's claim on a message. It is renewed while the worker works, given back when the worker "
        "stops, and runs out when the worker dies, so that another one takes the message and does its work again.",
        "query",
        (
            -0.0826099, 0.0091107, -0.0077288, 0.0542869, -0.033197, 0.0473887, -0.0053776, -0.0383494, 0.0736097,
            0.0339001, 0.0660113, 0.1003766, 0.0041987, 0.0494015, -0.0256811, 0.0562558,
        ),
    ),
)
# fmt: on
