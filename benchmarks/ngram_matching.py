"""How long ZEN's matching takes as the text grows, against a lexicon as large as the released one.

"cpu_s" are seconds of one core, the best of five.

python -m benchmarks.ngram_matching [--ngrams 104089] [--tokens 100000]
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time

from zoo.data.knowledge.ngrams import NGramLexicon


def measure(lexicon: NGramLexicon, tokens: list[str]) -> dict[str, float]:
    seconds = []
    for _ in range(5):
        started = time.process_time()
        found = lexicon.matches(tokens)
        seconds.append(time.process_time() - started)
    best = min(seconds)
    return {
        "tokens": len(tokens),
        "matches": len(found),
        "cpu_s": round(best, 4),
        "us_per_token": round(1e6 * best / len(tokens), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ngrams", type=int, default=104_089)
    parser.add_argument("--tokens", type=int, default=100_000)
    options = parser.parse_args()
    print(json.dumps({"machine": platform.processor() or platform.machine(), "python": platform.python_version()}))
    rng = random.Random(0)
    letters = [chr(0x4E00 + rank) for rank in range(3000)]
    weights = [1 / (rank + 1) for rank in range(3000)]  # some characters are frequent, most are not
    text = rng.choices(letters, weights, k=options.tokens)
    starts = [rng.randrange(options.tokens - 7) for _ in range(options.ngrams)]
    lexicon = NGramLexicon(
        [text[start : start + rng.randint(2, 7)] for start in starts]
    )  # of the text itself: many match
    for size in (options.tokens // 100, options.tokens // 10, options.tokens):
        print(json.dumps(measure(lexicon, text[:size])), flush=True)


if __name__ == "__main__":
    main()
