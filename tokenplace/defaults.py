"""Every limit, timeout and port, with its unit and its reason. One section a part; nothing here is
read from outside.

A limit that another peer must know stands in docs/protocol.md too; a test keeps both equal.
"""

from __future__ import annotations

from typing import Final

# ---------------------------------------------------------------- network

NETWORK: Final = (
    "main"  # separates whole networks: part of every protocol id, DHT key and signature
)
API_PORT: Final = 5010  # the localhost API; token.place's own port
LISTEN_ADDR: Final = "/ip4/0.0.0.0/tcp/4010"  # a serving peer; 4001 is IPFS's and often taken

# ---------------------------------------------------------------- exchange (docs/protocol.md,
# sections 4 to 6)

# A prompt for 128k tokens of context is about 600 KB of text; four times that still fits the padded
# request.
MAX_BODY_BYTES: Final = 3 << 20
MIN_PADDED_BYTES: Final = 2 << 10
MAX_PADDED_BYTES: Final = 4 << 20
MAX_REQUEST_FRAME_BYTES: Final = (
    MAX_PADDED_BYTES + 4096
)  # header, encapsulated key and tag are 1,144 bytes
MAX_REFUSAL_BYTES: Final = (
    8 << 10
)  # signed keys (about 3 KB with two hybrid keys) and live (0.3 KB)
CHUNK_PAD_BYTES: Final = (
    128  # one token's frame is about 60 bytes: one and two tokens look the same
)
MAX_CHUNK_BYTES: Final = (
    16 << 10
)  # plaintext; 16 choices' worth of one tick, and what a requester buffers
TOKEN_TICK_S: Final = (
    0.05  # tokens after the first leave together: a fifth of the CPU, and hides their timing
)
HEARTBEAT_S: Final = 2.0
IDLE_TIMEOUT_S: Final = (
    10.0  # no byte for so long: the donor is given up; survives a 5 s network flap
)
REQUEST_TIMEOUT_S: Final = 10.0  # the whole request frame must have arrived at the donor
WRITE_TIMEOUT_S: Final = 10.0  # a requester that does not read is cut off
CONNECT_TIMEOUT_S: Final = 5.0
# First token due by FACTOR x eta + GRACE, then one token per PROGRESS seconds: heartbeats prove
# life, not progress.
FIRST_TOKEN_ETA_FACTOR: Final = 3.0
FIRST_TOKEN_GRACE_S: Final = 5.0
PROGRESS_TIMEOUT_S: Final = 10.0
MAX_EXCHANGE_S: Final = 1800.0  # longest answer: 128k tokens at 70 tokens/s

# ---------------------------------------------------------------- gen/1 (docs/protocol.md, section
# 7)

MAX_MESSAGES: Final = 1024
MAX_STOP_STRINGS: Final = 4  # as OpenAI
MAX_STOP_STRING_BYTES: Final = 256
MAX_NEW_TOKENS: Final = 131_072
MAX_TOP_K: Final = 1 << 20

# ---------------------------------------------------------------- donor's admission

RUNNING_PER_BUCKET: Final = 16
QUEUED_PER_BUCKET: Final = 32
MAX_QUEUED: Final = (
    64  # over all buckets; at 128 tokens a request and 70 tokens/s the last waits two minutes
)
MAX_OPEN_EXCHANGES: Final = 256  # over all buckets, before anything of a request was read

# ---------------------------------------------------------------- signed objects (docs/protocol.md,
# section 3)

KEYS_LIFETIME_S: Final = 48 * 3600
OFFER_LIFETIME_S: Final = 15 * 60
LIVE_LIFETIME_S: Final = 20
CLOCK_SKEW_S: Final = 300
EPOCH_S: Final = 60  # a new epoch so often
EPOCHS_KEPT: Final = 5
MAX_ADVERT_BYTES: Final = 8 << 10  # an envelope; an offer of 20 models is about 6 KB
MAX_KEYS: Final = 8
MAX_OFFERED_MODELS: Final = 32
MAX_ADDRS: Final = (
    8  # of one peer: two network cards, two IP versions, and a public address of each
)
MAX_ADDR_CHARS: Final = 256  # a multiaddr with a relay in it is about 180
MAX_PROFILE_CHARS: Final = 256
MAX_FEATURES: Final = 16
MAX_FEATURE_CHARS: Final = 32
MAX_PUBLIC_KEY_BYTES: Final = 4096  # ML-KEM-1024 with a curve is 1.6 KB
MAX_N_CTX: Final = 1 << 24  # tokens; far above any model, and keeps arithmetic small
MAX_TPS: Final = 1e7  # tokens/s; a claim above is nonsense
LIVE_REFRESH_S: Final = 5.0  # a `live` is made anew at most so often

# ---------------------------------------------------------------- router

MAX_ATTEMPTS: Final = 3

# ---------------------------------------------------------------- directory (docs/protocol.md, section 3)

MAX_DIRECTORY_QUERY_BYTES: Final = 1 << 10
MAX_DIRECTORY_ANSWER_BYTES: Final = 256 << 10
MAX_DIRECTORY_ENTRIES: Final = 32
DIRECTORY_READ_TIMEOUT_S: Final = 5.0  # the question must have arrived
DIRECTORY_WRITE_TIMEOUT_S: Final = 10.0  # 256 KiB at 26 KB/s, far below any link that can carry an answer
DIRECTORY_ASK_TIMEOUT_S: Final = 4.0  # dial, question and answer; a newcomer's first answer is due within 5 s
DIRECTORY_STREAMS_PER_PEER: Final = 4  # a peer asks about one thing at a time; a few searches may overlap
DIRECTORY_STREAMS: Final = 64  # 64 x 256 KiB of answers in flight: 16 MB
DIRECTORY_MAX_DONORS: Final = 512  # about 5 KB each; more than a requester can compare usefully
