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
TOKEN_TICK_SLACK_S: Final = 0.02  # an engine on the same ticks is late by a step at the most
HEARTBEAT_S: Final = 2.0
IDLE_TIMEOUT_S: Final = (
    10.0  # no byte for so long: the donor is given up; survives a 5 s network flap
)
REQUEST_TIMEOUT_S: Final = 10.0  # the whole request frame must have arrived at the donor
WRITE_TIMEOUT_S: Final = 10.0  # a requester that does not read is cut off
# All that is left when an answer has ended; what is not read fills a donor's memory. In that time
# 16 MiB of vectors come through 1.2 Mbit/s.
ENDING_TIMEOUT_S: Final = 120.0
CONNECT_TIMEOUT_S: Final = 5.0
# First token due by FACTOR x eta + GRACE, then one token per PROGRESS seconds: heartbeats prove
# life, not progress.
FIRST_TOKEN_ETA_FACTOR: Final = 3.0
FIRST_TOKEN_GRACE_S: Final = 5.0
PROGRESS_TIMEOUT_S: Final = 10.0
# A donor whose heartbeats show no movement is stuck, or pretends: a step of a prompt takes 0.7 s at
# most. In a queue, also one for a new worker, nothing may move for as long as RESUME_WAIT_S.
STILL_TIMEOUT_S: Final = 20.0
QUEUE_STILL_TIMEOUT_S: Final = 60.0
MAX_REQUEUES: Final = 4  # that renew an answer's deadlines; as often as an engine resumes one
# Whatever the donor says of its queue: 64 requests of 128 tokens at 70 tokens/s are two minutes.
MAX_WAIT_S: Final = 300.0
MAX_EXCHANGE_S: Final = 1800.0  # longest answer: 128k tokens at 70 tokens/s
# A peer that stops: answers that run have so long to end, then so long to be told why they do not.
# The rest of the 5 s promised is for closing.
FINISH_GRACE_S: Final = 2.5
FINISH_NOTICE_S: Final = 0.5

# ---------------------------------------------------------------- gen/1 (docs/protocol.md, section
# 7)

MAX_MESSAGES: Final = 1024
# Strings, commas and brackets: three times those of MAX_MESSAGES messages. Parsing so many holds up
# everybody else for 20 ms.
MAX_BODY_PARTS: Final = 32_768
MAX_STOP_STRINGS: Final = 4  # as OpenAI
MAX_STOP_STRING_BYTES: Final = 256
MAX_NEW_TOKENS: Final = 131_072
MAX_PROMPT_IDS: Final = 524_288  # as base64 2.8 MB: about what a body holds
MAX_TOP_K: Final = 1 << 20
MAX_REPEAT_LAST_N: Final = 65_536  # tokens looked back at; each one costs time at every draw
MAX_LOGIT_BIAS: Final = 300  # entries; as OpenAI
MAX_CHOICES: Final = 16  # of one request: as many as one bucket may run
MAX_TOP_LOGPROBS: Final = 20  # as OpenAI; 0.4 KB on the wire with each token
MAX_TOOLS: Final = 128  # as OpenAI
MAX_TOOL_NAME_CHARS: Final = 64  # as OpenAI
MAX_TOOL_DESCRIPTION_BYTES: Final = 8 << 10  # a page and a half; OpenAI has 1 KB, agents write more
MAX_TOOL_CALLS: Final = 64  # in one message; models make a few at a time
MAX_TOOL_CALL_ID_BYTES: Final = 256  # the longest that apps make have 50
# JSON schemas, of a tool or an answer: the largest in use are 20 KB, and nested 12 deep.
MAX_SCHEMA_BYTES: Final = 64 << 10
MAX_SCHEMA_DEPTH: Final = 64

# ---------------------------------------------------------------- donor's admission

RUNNING_PER_BUCKET: Final = 16
QUEUED_PER_BUCKET: Final = 32
MAX_QUEUED: Final = (
    64  # over all buckets; at 128 tokens a request and 70 tokens/s the last waits two minutes
)
# A newcomer that would begin later is told `busy`: with a minute to go another donor is the better
# choice, and programs that wait for an answer often give up after one or two.
MAX_QUEUE_WAIT_S: Final = 60.0
MAX_OPEN_EXCHANGES: Final = 256  # over all buckets, before anything of a request was read

# ---------------------------------------------------------------- sealing and exchange, this side

MAX_SEEN_PER_EPOCH: Final = 65_536  # a thousand requests a second; a full epoch's cache is 9 MB
READ_BYTES: Final = 64 << 10  # one read from a stream; a yamux window is 256 KiB
GREASED_CHUNKS: Final = 8  # one in so many has something unknown in it: several an answer
MAX_ERROR_MESSAGE_CHARS: Final = 512
# Tokens average 4 bytes, so the longest answer fits several times, and no donor fills our memory
# with what an app does not read: objects of Python, a few times as large.
MAX_ANSWER_BYTES: Final = 16 << 20  # over all choices
ANSWER_ID_BYTES: Final = (
    32  # what each id counts there besides its own bytes, those of logprobs too
)
# `accepted` comes first, so no frame can precede it: one idle time for the first byte, one for it.
ACCEPT_TIMEOUT_S: Final = 2 * IDLE_TIMEOUT_S
# Of a chunk, kept free of tokens, so that `finished` or `error` always fits: 512 characters are at
# most 2 KiB, and the ends of 16 choices at stop strings of 256 bytes 4.7.
CHUNK_RESERVE_BYTES: Final = 6 << 10
# Larger requests share a budget while they are read: 256 exchanges of 4 MiB would be a gigabyte.
SMALL_REQUEST_BYTES: Final = 64 << 10
MAX_LARGE_REQUESTS_BYTES: Final = 64 << 20
LARGE_REQUESTS_BYTES_PER_BUCKET: Final = 16 << 20  # four of the largest; nobody shuts others out
# Of MAX_OPEN_EXCHANGES, those being read included.
OPEN_PER_BUCKET: Final = RUNNING_PER_BUCKET + QUEUED_PER_BUCKET
# Of an answer that comes whole, in one frame: with its name and place it fills a chunk.
MAX_PART_BYTES: Final = 15 << 10
MAX_BEGUN_CHARS: Final = 64  # "<think>" has 7
# Of a vector's length, which should be 1: float32 is off by a millionth, others maybe by more.
VECTOR_LENGTH_SLACK: Final = 0.01
BUSY_RETRY_AFTER_S: Final = 2.0  # 128 tokens at 70 tokens/s: where nobody waits who could tell
# Else it is reckoned from the queue, between these: sooner another try only costs both sides, and
# in five minutes everything may be otherwise.
MIN_BUSY_RETRY_AFTER_S: Final = 1.0
MAX_BUSY_RETRY_AFTER_S: Final = 300.0

# ---------------------------------------------------------------- signed objects (docs/protocol.md,
# section 3)

KEYS_LIFETIME_S: Final = 48 * 3600
# A private key's life: recorded requests can be opened by whoever steals it within that time.
PRIVATE_KEY_LIFETIME_S: Final = 48 * 3600
# Then a new key is advertised. The old one opens requests for the other half of its life, so a
# statement that names it may be handed on for at least a day.
ROTATE_KEY_S: Final = 24 * 3600
MAX_GREASE_KEY_BYTES: Final = 64  # of the entry that means nothing: a twentieth of a real key
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
MAX_QUANT_CHARS: Final = 16  # llama.cpp's longest, IQ4_NL_8_8, has ten
MAX_PUBLIC_KEY_BYTES: Final = 4096  # ML-KEM-1024 with a curve is 1.6 KB
MAX_N_CTX: Final = 1 << 24  # tokens; far above any model, and keeps arithmetic small
MAX_TPS: Final = 1e7  # tokens/s; a claim above is nonsense
LIVE_REFRESH_S: Final = 5.0  # a `live` is made anew at most so often

# ---------------------------------------------------------------- libp2p host

# In each direction, 60 KB each; a DHT server in a network of thousands holds about 100.
MAX_CONNECTIONS: Final = 256
# Inbound and open, per IPv4 address or IPv6 /56: go-libp2p's figures. As many more in their
# handshake.
MAX_CONNECTIONS_PER_IP: Final = 8
# One of them goes for the next peer of a university once it has been idle for so long.
IDLE_BEFORE_LEAVING_S: Final = 10.0
# Inbound, per loopback address. All peers of a demo or a benchmark of 100 peers, with two hosts
# each, come from one; a quarter of all places stays for others.
MAX_LOOPBACK_CONNECTIONS: Final = 192
# Inbound and still in their handshake. A silent one is gone after UPGRADE_TIMEOUT_S: to hold all of
# them takes 64 new ones a second, and so 32 addresses.
MAX_GREETING: Final = 192
# New connections of one IPv4 address or IPv6 /56: a peer comes back a few times, a flood that
# connects and hangs up must not keep the processor busy. A refused one costs 30 us.
CONNECT_BURST: Final = 32
CONNECTS_PER_S: Final = 2.0
LOOPBACK_CONNECT_BURST: Final = 1024  # per loopback address: a benchmark's peers all at once
LOOPBACK_CONNECTS_PER_S: Final = 256.0  # more handshakes than a core can do
LISTEN_BACKLOG: Final = 4096  # Linux's own bound; below, a flood makes newcomers' SYNs wait 1 s
ACCEPT_BATCH: Final = 64  # accepted in a row before others have their turn: 2 ms if all are refused
ACCEPT_RETRY_S: Final = 0.1  # without descriptors, nothing can be done but wait until some are free
# Failed dials to one public address, on the word of strangers; full again after the window.
FAILED_DIALS: Final = 2
FAILED_DIALS_WINDOW_S: Final = 60.0
MAX_TOKEN_BUCKETS: Final = 4096  # 200 bytes each
DIAL_STAGGER_S: Final = 0.15  # until the next address is tried too: RFC 8305 says 100 to 250 ms
MAX_DIAL_ADDRS: Final = 8  # addresses tried for one peer; an offer holds no more
# Sockets. Dead peers hold theirs for CONNECT_TIMEOUT_S and must not starve the living.
MAX_CONCURRENT_DIALS: Final = 128
UPGRADE_TIMEOUT_S: Final = 3.0  # an inbound connection's Noise and yamux: 4 round trips
NEGOTIATE_TIMEOUT_S: Final = 5.0  # the choice of a stream's protocol: 2 round trips
FIRST_FRAME_TIMEOUT_S: Final = 10.0  # what a stream is for must be said by then
MAX_INBOUND_STREAMS: Final = 128  # on one connection: twice what one bucket may run and queue
STREAM_WINDOW_BYTES: Final = 256 << 10  # yamux's first window, never grown: 2.5 MB/s at 100 ms
MAX_UNREAD_BYTES: Final = 8 << 20  # over all streams of one connection: 32 full windows
# Of a stream, in one yamux frame, as rust-yamux does. A ping waits for one at the most: 2 s at
# 64 kbit/s.
DATA_FRAME_BYTES: Final = 16 << 10
# Pings, credit, openings and ends that a connection has yet to take, 0.3 MB; a peer that has them
# answered and takes no answer is not read any further.
MAX_WAITING_FRAMES: Final = 1024
# Silence after which a connection is asked for a sign of life, and how much more of it ends the
# connection: together 11 s, below the 12 in which a frozen peer is noticed. An outage of 5 s is
# survived. A hundred idle connections cost 2 % of a core and 3 KB/s in each direction.
KEEPALIVE_INTERVAL_S: Final = 4.0
KEEPALIVE_TIMEOUT_S: Final = 7.0
# The first of the two with a stream open: where the line is slow to tell what was lost (a round
# trip of 0.1 s, and no TCP_RTO_MAX_MS), 7 s do not outlive an outage of 5 s, and 9 do. Also how
# long somebody only listens without a word.
KEEPALIVE_IN_USE_S: Final = 2.0
KEEPALIVE_LATE_S: Final = 5.0  # a busy machine is late by a second or two; by more, it stood still
# The kernel's own bound for bytes that nobody acknowledges, also of a socket that is closed.
TCP_USER_TIMEOUT_S: Final = 12.0
TCP_RTO_MAX_S: Final = 1.0  # after an outage TCP is back within so long (Linux 6.15)
WRITE_STALL_S: Final = 10.0  # a connection that takes so long for one frame is closed: 1.6 KB/s
MACHINE_CHECK_S: Final = 1.0  # how soon it is noticed that this machine slept
INTERFACES_CHECK_S: Final = 5.0  # or moved to another network; looking takes 0.3 ms
RESET_TIMEOUT_S: Final = 1.0  # resets run shielded and must not wait for a stalled connection
CLOSE_TIMEOUT_S: Final = 3.0  # the whole host; SIGTERM to exit is promised within 5 s

# ---------------------------------------------------------------- DHT (docs/protocol.md, section 2)

DHT_PROTOCOL: Final = "/tokenplace/{network}/kad/1.0.0"
DONORS_SHARDS: Final = 16
MODEL_SHARDS: Final = 2  # also of artifacts
ANNOUNCE_AHEAD_S: Final = 3600  # tomorrow's keys are announced so long before midnight UTC
PROVIDER_TTL_S: Final = 45 * 60  # a donor announces every 12 minutes: three may be lost
K: Final = 20  # Kademlia's: peers a record is stored at, peers a walk ends with
ALPHA: Final = 6  # queries in flight in one walk: some silent peers must not stop it
# A query that takes longer is passed over, and another peer asked: a new connection to the other
# side of the world and a question on it are 7 round trips of 0.2 s, but most are near or connected.
PATIENCE_S: Final = 0.5
MAX_WALK_QUERIES: Final = 3 * ALPHA  # in flight, those passed over included
# Of the K closest to a key. Providers announce themselves to all K: these name nearly all of them,
# even when a third of them came later or keeps silent.
ENOUGH_ANSWERS: Final = 8
DOUBT_S: Final = 60.0  # who did not answer is asked last for so long
MAX_DOUBTED: Final = 1024  # peers; 100 bytes each
QUERY_TIMEOUT_S: Final = 3.0  # one query, connecting included
WALK_TIMEOUT_S: Final = 10.0
MAX_TABLE_PEERS: Final = 1000
BUCKET_PEERS: Final = 2 * K  # a bucket's; half of them may be gone, and walks are a hop shorter
# Of one /16 (IPv6: /32) of the internet: nobody who rents one fills a table, nor a bucket.
BUCKET_PEERS_PER_NETWORK: Final = 2
TABLE_PEERS_PER_NETWORK: Final = 16
MAX_QUERY_FAILURES: Final = 2  # in a row, then a peer leaves the table: one may be a lost packet
RECHECK_S: Final = 5.0  # how often doubtful peers are asked again; a network flap lasts as long
MAX_PEER_ADDRS: Final = 8  # of one peer, in any message
MAX_ADDR_BYTES: Final = 128  # an address with a DNS name of 80 characters and a peer id
MAX_DHT_MESSAGE_BYTES: Final = 128 << 10  # K closer peers and a full key's providers are 92 KB
MAX_DHT_STREAMS: Final = 64  # served at once
MAX_PARSED: Final = 4096  # ids and addresses remembered as parsed: a full table's; 300 bytes each
# Below what a server allows one peer, because a stream counts there until its reset has arrived.
DHT_QUERIES_PER_PEER: Final = 3
MAX_DHT_STREAMS_PER_PEER: Final = 4
DHT_STREAM_LIFETIME_S: Final = 20.0
MAX_PROVIDERS_PER_KEY: Final = 64
MAX_KEYS_PER_PROVIDER: Final = 256  # 32 models by name and artifact, two days: 130
MAX_PROVIDER_RECORDS: Final = 20_000  # about 12 MB
# Providers of full keys are dialled to see who is there: by strangers' word, so seldom.
PROVIDER_PROBES: Final = 2  # at the same time
PROVIDER_PROBE_PAUSE_S: Final = 1.0  # after each
PROVIDER_PROBE_AGAIN_S: Final = 600.0  # the same provider; one that lives announces every 12 min
WITHDRAW_TIMEOUT_S: Final = 1.0  # taking all records back; SIGTERM to exit is promised within 5 s
MAX_HOLDERS: Final = 2 * K  # of one record, told when it is withdrawn: the latest two rounds
PARALLEL_WITHDRAWALS: Final = 32  # servers told at the same time; one stream each
TABLE_REFRESH_S: Final = 120.0  # dead peers leave the table, moved ones get their new address
CLIENT_MEMORY_S: Final = 120.0  # who asked and was no server is not probed again before

# ---------------------------------------------------------------- reach (docs/protocol.md, section
# 12)

MAX_REACH_MESSAGE_BYTES: Final = 256  # a question is about 45 bytes, an answer at most 80
REACH_TIMEOUT_S: Final = 10.0  # the whole exchange, on both sides
REACH_READ_TIMEOUT_S: Final = 3.0  # the question has arrived
# Dialling and the proof: with the above it leaves a second for the answer. A firewall that drops
# packets costs CONNECT_TIMEOUT_S.
REACH_DIAL_TIMEOUT_S: Final = 6.0
REACH_STREAMS: Final = 64  # open at once; 4 KB each
REACH_STREAMS_PER_PEER: Final = 2
REACH_DIALS: Final = 8  # hosts that dial back at once; each costs 0.2 s even on loopback
# Of one address; a restart or two may follow each other, a port scan may not.
REACH_DIAL_BURST: Final = 4
REACH_DIAL_EVERY_S: Final = 30.0  # then 2 a minute
REACH_NETWORKS: Final = 2  # /16s (IPv6: /32s) that must have confirmed a public address
REACH_PROOF_LIFETIME_S: Final = 45 * 60  # as a DHT record's: it names the address
REACH_RENEW_S: Final = 30 * 60  # after this a proof is renewed, with a quarter of an hour to do so
REACH_DOUBT_S: Final = 60.0  # a proof lives on so long when there is a reason to doubt it
REACH_RETRY_S: Final = 2.0  # until the same peer is asked again, then doubled
REACH_RETRY_MAX_S: Final = 600.0
REACH_ASKED_AT_ONCE: Final = 3  # one may be silent, one behind the same router
REACH_MAX_ASKED: Final = 256  # peers remembered as asked: as many as can be connected
REACH_POLL_S: Final = 0.1  # how soon a new connection is noticed while nobody reaches this peer
REACH_CALM_POLL_S: Final = 1.0  # and else: looking at 256 connections takes a millisecond
REACH_INTERFACES_S: Final = 5.0  # how soon a changed address of this machine is noticed

# ---------------------------------------------------------------- router

MAX_ATTEMPTS: Final = 3  # in a row that did not get on: a third rarely does better than a second
PROGRESS_TOKENS: Final = 16  # new ones with which an attempt has got on: a line of text
# Over all. Only donors that got on and then failed lead here; an app is better told.
MAX_ATTEMPTS_IN_ALL: Final = 16
# Requests of this peer's own apps of which it knows what became, for `peer status` and for an app
# that asks why: some minutes of a busy one, and under 4 MB with the attempts at each.
REQUESTS_KEPT: Final = 256
ATTEMPTS_KEPT: Final = 32  # of each request: all of them, and as many hedges
# Donors of which is remembered how they did: twice as many as are known at a time. About 1 KB each.
MAX_DONORS_MEASURED: Final = 1024
MAX_SEATS_SEEN: Final = 64  # requests of this peer at one donor at a time; more is not aimed at
# Requests that may go to donors that were never measured, while measured ones are there; so many
# are saved up for times without any.
NEWCOMERS_SHARE: Final = 0.05
MAX_EXPLORATIONS: Final = 2.0
# A donor that answered badly rests so long, doubled each time: as one that did not answer at all.
BREAKER_REST_S: Final = 15.0
BREAKER_MAX_REST_S: Final = 600.0
# How long a full donor is left alone: as it says, between these.
MIN_COOL_DOWN_S: Final = 0.5
MAX_COOL_DOWN_S: Final = 60.0
# A donor whose path broke is not asked so long if others are there: by then the directory knows.
SUSPECT_S: Final = 5.0
# Two paths that break within so long, and nobody was heard in between: it is the own network. The
# longest time between two failures of one request: 10 s of silence, then 5 s without a connection.
BLAME_WITHIN_S: Final = 15.0
OUTAGE_TOLD_S: Final = 60.0  # what was known of the own network so long ago is not told any more
# Beginnings of conversations of which is remembered who holds them: 128 long ones; 300 bytes each.
MAX_PREFIXES: Final = 4096
# A donor keeps them until others need the room: on a quiet one for hours, on a busy one for
# minutes. Who has lost one says so, and costs no more than any other donor.
PREFIX_HELD_S: Final = 600.0
# That an answer which has begun waits for a donor who can go on with it and is not known yet: the
# app sees a pause, and is told of a failure within a second.
TWIN_SEARCH_S: Final = 0.5
# The same for anybody, once a donor has failed: after IDLE_TIMEOUT_S of silence an app is told
# within 12 s. A walk that meets somebody has by WALK_SOFT_S.
NEXT_SEARCH_S: Final = 1.5
SEARCH_GRACE_S: Final = 0.1  # a search that has such an end comes to it itself, with what it has
# A second donor is asked while the first lets a request wait, for one request in 20 and two more:
# so the network's load grows by a twentieth at the most.
HEDGE_ONE_IN: Final = 20
HEDGE_BURST: Final = 2
HEDGE_UNACCEPTED_S: Final = 3.0  # a yes or no takes three round trips; 1 s over a bad path
HEDGE_AFTER_MIN_S: Final = 1.0  # in a queue; sooner, the first donor is about to begin
HEDGE_AFTER_MAX_S: Final = 10.0  # whatever a donor promises: an idle one has begun by then
HEDGE_LOOK_S: Final = 2.0  # between two looks for an idle donor; a `live` is 5 s old at the least
# That a donor may let wait while another could be asked, and the prompt's time at a speed that old
# laptops reach. Longer than most answers that a request waits behind.
FIRST_TOKEN_PATIENCE_S: Final = 60.0
PATIENT_PREFILL_TPS: Final = 20.0
# That an app waits for the next token over all attempts, then it is told why: MAX_WAIT_S at one
# donor, and one that was left before.
MAX_UNANSWERED_S: Final = 360.0

# ---------------------------------------------------------------- directory (protocol, section 3)

MAX_DIRECTORY_QUERY_BYTES: Final = 1 << 10
MAX_DIRECTORY_ANSWER_BYTES: Final = 256 << 10
MAX_DIRECTORY_ENTRIES: Final = 32
DIRECTORY_READ_TIMEOUT_S: Final = 5.0  # the question must have arrived
DIRECTORY_WRITE_TIMEOUT_S: Final = 10.0  # 256 KiB at 26 KB/s, below any link that can carry it
# Dial, question and answer; a newcomer's first answer is due within 5 s.
DIRECTORY_ASK_TIMEOUT_S: Final = 4.0
DIRECTORY_STREAMS_PER_PEER: Final = 4  # twice what a peer of ours asks at once
DIRECTORY_STREAMS: Final = 64  # 64 x 256 KiB of answers in flight: 16 MB
ASKED_AT_ONCE: Final = 2  # questions to one peer; below DIRECTORY_STREAMS_PER_PEER
# News that donors tell unasked: one entry of a directory, at most 24 KiB of statements.
MAX_NEWS_BYTES: Final = 3 * MAX_ADVERT_BYTES + 64
NEWS_STREAMS: Final = 32  # being read at once; 25 KiB each
NEWS_STREAMS_PER_PEER: Final = 1
NEWS_BURST: Final = 4  # of one donor, then one every NEWS_EVERY_S: each costs 1 ms of signatures
NEWS_EVERY_S: Final = 10.0
# Telling all who are connected: 2 ms each, and SIGTERM to exit is promised within 5 s.
NEWS_TIMEOUT_S: Final = 1.0
PARALLEL_NEWS: Final = 32  # one stream each
DIRECTORY_MAX_DONORS: Final = 512  # about 5 KB each; more than a requester can compare usefully
MAX_FLOORS: Final = 4096  # donors of whom the highest numbers are remembered; about 1 KB each
# A donor that failed is asked again after so long, doubled each time: it may have been restarted,
# or be gone.
DONOR_RETRY_S: Final = 15.0
DONOR_RETRY_MAX_S: Final = 600.0

# ---------------------------------------------------------------- engine

# A chat fits, and the KV cache stays small beside the weights: 92 MB for SmolLM2, 512 MB for an 8B
# model with grouped-query attention.
DEFAULT_N_CTX: Final = 4096
# A prompt of more bytes than this for each token of context is refused before it is tokenised,
# which would hold up the running answer: 1 MB takes up to 1.9 s. Text has about 4 bytes a token,
# code 10.
MAX_PROMPT_BYTES_PER_TOKEN: Final = 32
# Aimed at: so long a newcomer waits for `accepted`, and a prompt that was cancelled goes on.
PREFILL_STEP_S: Final = 0.22
# The same where a step holds prompts alone and ends as soon as one of them is cancelled: twice as
# many tokens at once take a tenth less time each. A newcomer waits so long for `accepted`.
READING_STEP_S: Final = 0.7
CANCEL_LOOK_S: Final = 0.02  # how often such a step looks for a cancellation
FIRST_PREFILL_CHUNK: Final = 64  # tokens, before any were measured: 0.2 s of a small model
MIN_PREFILL_CHUNK: Final = 8  # where that takes longer than a step should, prompts must still move
TILED_CHUNK: Final = 64  # from here on llama.cpp's attention on CPUs is a tenth faster
MAX_PREFILL_CHUNK: Final = 512  # llama.cpp's own n_ubatch: larger chunks are cut up by it anyway
# Sequences at a time: beyond, each step of a small model on a few cores is slow for everybody.
DEFAULT_SLOTS: Final = 8
MAX_SLOTS: Final = 64  # llama.cpp's own bound is 256; each may hold one context
# In a pool of cells, slots for those that run and for idle prefixes.
SHARED_SLOTS_FACTOR: Final = 4
MIN_N_CTX: Final = 512  # a context that memory allows; below, a model is of little use
# Cells reserved for an answer without a limit of its own; it gets more when it needs them.
EXPECTED_NEW_TOKENS: Final = 512
# A sequence waits for a prefix that another one computes at the moment only for so many tokens:
# computing fewer takes no longer than the wait.
MIN_SHARED_PREFIX: Final = 32
# Of several that come together, those whose prompts were read first wait so long for the others'
# prompts: their steps are the faster, the more they share them. Nobody who came later gets that.
MAX_HOLD_S: Final = 1.5
# How long answers are, until some have ended here; and how many of those are remembered, so that
# the guess follows what is asked at the time.
EXPECTED_ANSWER_TOKENS: Final = 200
LENGTHS_REMEMBERED: Final = 32
ETA_RENEW_S: Final = 1.0  # how often those who wait are told anew: twice a heartbeat
MIN_REUSED_PREFIX: Final = 8  # below, copying is not worth it: a BOS token and a role
MAX_ACCOUNTS: Final = 1024  # buckets whose share of the work is remembered; 100 bytes each
MAX_CHILD_FRAME_BYTES: Final = 8 << 20  # twice a rendered prompt; more means a broken child
LOAD_TIMEOUT_S: Final = 600.0  # 40 GB from a disk that reads 100 MB/s, and its first tokens
WORKER_STALL_S: Final = 120.0  # FIRST_PREFILL_CHUNK tokens at 1 token/s take a minute
# For whoever gives no figure; a peer reckons it from the memory it may take.
DEFAULT_KV_BYTES: Final = 2 << 30  # 16 requests of 4,096 tokens with SmolLM2 are 1.5 GB
RESTART_DELAY_S: Final = 0.1  # before a dead worker's first restart, then doubled each time
RESTART_DELAY_MAX_S: Final = 30.0
RESTART_WAIT_S: Final = 5.0  # that a request waits for one: half of what a silent donor is given
# That an answer which had begun waits for one. A requester gives up earlier if its own deadlines
# say so; loading 8 GB that are in the page cache takes a few seconds.
RESUME_WAIT_S: Final = 60.0
# Of one answer. Two for each request that kills workers beside it: when it is suspected with
# others, and when it is found out.
MAX_RESUMES: Final = 4
# After its first new token a suspect has passed what it died of before: tokens that were computed
# and not yet sent are those of one tick.
PROBATION_S: Final = 0.2
# Memory that a worker may take beyond what it has when its model is loaded: logits of SCORE_ROWS
# rows are 32 MB, grammars and their tables tens.
WORKER_GROWTH_BYTES: Final = 2 << 30
RENDER_TIMEOUT_S: Final = 2.0  # a long chat takes 5 ms
HELPER_START_TIMEOUT_S: Final = 10.0  # 0.2 to 0.5 s; a busy machine needs more
RENDER_MEMORY_BYTES: Final = 512 << 20  # address space; Python with jinja2 needs 60 MB
MAX_RENDERED_BYTES: Final = 4 << 20  # UTF-8; the largest body and its markup
# Grammars are tried out in a process of their own before the worker compiles them, which holds up
# every answer there: so long at the most. Usual schemas take 1 to 10 ms, 64 KiB of them 0.2 s.
GRAMMAR_COMPILE_S: Final = 0.25  # of processor time
GRAMMAR_CHECK_TIMEOUT_S: Final = 1.0  # on a busy machine; then the process is replaced
GRAMMAR_CHECK_MEMORY_BYTES: Final = 512 << 20  # address space; Python with numpy needs 110 MB
# Characters between two parts of JSON: a small model writes them for ever if it may. Eight levels
# of four and a line's end are 33.
MAX_JSON_SPACE: Final = 64
MAX_GRAMMAR_BYTES: Final = 256 << 10  # all tools' schemas; 128 tools of 2 KB
# Of one step of one answer, by llguidance's own reckoning: 14,000 units of fuel or 20,000 items are
# a millisecond. Usual schemas need a hundredth.
GRAMMAR_STEP_LEXER_FUEL: Final = 100_000
GRAMMAR_STEP_ITEMS: Final = 50_000
MAX_LEXER_STATES: Final = 20_000  # of one answer; about 1 KB each, usual schemas have hundreds
MAX_TEMPLATE_BYTES: Final = 512 << 10  # the longest in use are 20 KB
CRASHES_TO_QUARANTINE: Final = 2  # once may be chance
MAX_CRASHES_REMEMBERED: Final = 256  # 32 bytes each
# Embeddings: the first two are OpenAI's own limits, for one request.
MAX_EMBED_INPUTS: Final = 2048
MAX_EMBED_TOKENS: Final = 300_000
MAX_EMBED_DIMENSIONS: Final = 8192  # of a model; twice the largest in use. 2048 vectors: 64 MiB
MAX_VECTORS_BYTES: Final = 16 << 20  # of one answer: 2,048 vectors of 2,048 numbers
MAX_EMBED_BATCH: Final = 64  # texts computed together: with 8 tokens each they fill a step
# Characters tokenised in one step: 10 ms of usual text, 0.12 s of the worst. One text may be
# larger.
EMBED_READ_CHARS: Final = 64 << 10
# UTF-8 that is tokenised only to be counted: 250,000 tokens of text. It holds up running answers,
# by 0.2 s, or 2 s with the worst text.
MAX_COUNT_BYTES: Final = 1 << 20
# Rows of logits that a step of scoring keeps: 32 of a vocabulary of 262,144 are 34 MB.
SCORE_ROWS: Final = 32

# ---------------------------------------------------------------- donated models

# Of the machine's memory, for all donated models together unless --memory says otherwise. The rest
# is for its owner; and the weights are mapped files, which the system drops first when it must.
DONATED_MEMORY_SHARE: Final = 0.6
# Beside weights and KV cache: worker and renderer with their libraries take 130 MB, a step's
# buffers the rest.
WORKER_OVERHEAD_BYTES: Final = 192 << 20
OVERHEAD_BYTES_PER_WORD: Final = 1 << 10  # of the vocabulary: its texts, tries and rows of logits
# That a request waits while its model is loaded again. The requester gives up after
# ACCEPT_TIMEOUT_S; before that it is told to ask another donor.
LOAD_WAIT_S: Final = 15.0
# That a model waits for room while others answer; then those take no new requests.
MODEL_TURN_S: Final = 60.0
MODEL_RETRY_S: Final = 60.0  # before a load is tried again that failed for want of memory or time
MODEL_RETRY_MAX_S: Final = 1800.0
IDLE_CHECK_S: Final = 1.0  # how soon after its time an idle model is unloaded

# ---------------------------------------------------------------- joining and announcing

JOIN_POLL_S: Final = 0.2  # how soon it is seen that the last peer was lost, or the first came
JOIN_RETRY_S: Final = 1.0  # first pause between rounds, then doubled
JOIN_RETRY_MAX_S: Final = 60.0
JOIN_CONCURRENCY: Final = 8  # bootstrap peers called at the same time; as many others beside them
JOIN_REMEMBERED: Final = 16  # peers known from before, in one round: one of them lives, or few do
MAX_KNOWN_PEERS: Final = 256  # remembered over restarts; about 50 KB
MAX_KNOWN_PEERS_BYTES: Final = 1 << 20  # of the file: 256 peers with 8 addresses are 150 KB
KNOWN_PEERS_NOTE_S: Final = 2.0  # how often it is looked whom this peer has met
KNOWN_PEERS_WRITE_S: Final = 10.0  # and written down, if there is news: what a crash may lose
KNOWN_PEER_RENEW_S: Final = 3600.0  # that a peer is still there is news so often

# ---------------------------------------------------------------- HTTP API on localhost

API_MAX_BODY_BYTES: Final = 4 << 20  # gen/1's 3 MiB, and what JSON escapes and ignored fields add
API_BODY_TIMEOUT_S: Final = 30.0  # the whole body must have arrived; loopback needs milliseconds
API_MAX_BODIES_BYTES: Final = 64 << 20  # of all requests at once; parsed JSON takes 24 times more
API_MAX_HEAD_BYTES: Final = 16 << 10  # request line and headers; SDKs send under 2 KiB
API_MAX_HEADERS: Final = 100  # header lines of a request; browsers and SDKs send under 30
API_MAX_TARGET_BYTES: Final = 8000  # of a request line's target: what RFC 9112, section 3, asks for
API_READ_AHEAD_BYTES: Final = 64 << 10  # pipelined requests that wait; behind it reading stops
API_PREFLIGHT_MAX_AGE_S: Final = 600  # a browser need not ask again so long; Chromium's cap is 7200
API_MIN_KEY_CHARS: Final = 16  # of an API key: 16 hex digits are 64 bits, beyond guessing over HTTP
API_MAX_KEY_CHARS: Final = 512  # of an API key; providers' own have under 200
API_MAX_KEYS: Final = 1000  # in the key file: each is compared with what a request shows
API_LINGER_S: Final = 1.0  # a refused app may go on sending so long, so that it reads why
# Between a stream's last event, which says why it fails, and the abort: a browser that learns of
# the abort drops what it has not handed to its page yet. Long enough for a busy one.
API_ABORT_AFTER_S: Final = 0.3
API_IDLE_TIMEOUT_S: Final = 10.0  # for a request's headers, and between requests; clients keep 5 s
API_WRITE_TIMEOUT_S: Final = 30.0  # an app that takes no byte so long is cut; slow readers live
API_SHUTDOWN_GRACE_S: Final = 1.0  # answers about to end may; the whole program ends within 5 s
API_MAX_CONNECTIONS: Final = 256  # one listener; each holds at most a body and one answer
API_MAX_TURNED_AWAY: Final = 64  # connections beyond, being told so; further ones are just closed
API_HEADERS_HOLD_S: Final = 3.0  # status and headers wait so long for a donor's yes or no
API_KEEPALIVE_S: Final = 2.0  # silence after which a stream says why it waits; as the heartbeat
API_RETRY_AFTER_S: Final = 5  # when an error asks to try again but names no time
# The encrypted API: an app's RSA key as text, the largest is 1.1 KB. Below 2048 bits keys are
# broken, above 4096 nobody has one.
API_MAX_CLIENT_KEY_CHARS: Final = 4096
API_CLIENT_KEY_MIN_BITS: Final = 2048
API_CLIENT_KEY_MAX_BITS: Final = 4096
# Whatever could not be opened is answered at a multiple of so long after it came: a millisecond of
# work is not to be seen, and a person does not feel it.
API_SEALED_REFUSAL_STEP_S: Final = 0.05
COMPLETIONS_MAX_TOKENS: Final = 16  # /completions without max_tokens, as OpenAI
MAX_COMPLETIONS_LOGPROBS: Final = 5  # most likely tokens that /completions shows, as OpenAI
API_MAX_CHOICES: Final = 128  # of one answer, over all its prompts; as OpenAI
API_MAX_PROMPTS: Final = 128  # of one request; each is asked of donors on its own
API_PROMPTS_AT_ONCE: Final = 8  # of one request: half of what a donor runs for one requester
API_MAX_WISHES: Final = 64  # donors or quantizations in one list of `provider`
API_MAX_WISH_CHARS: Final = 128  # of such a name; peer ids have 52
MAX_MODEL_NAME_CHARS: Final = 256  # as asked by an app; `name@sha256:HEX` is at most 137

# ---------------------------------------------------------------- text of answers

# Characters held back while it is not known whether they call a tool: arguments that stand before
# the name, and the name itself.
MAX_HELD_CALL: Final = 64 << 10
MAX_HELD_SPACE: Final = 1024  # characters before, between and behind tags; models write one or two
MAX_ARGUMENTS_DEPTH: Final = 128  # of a call; twice what its schema may have
MAX_PYTHON_DEPTH: Final = 16  # where they are written as Python, whose every level costs time

# ---------------------------------------------------------------- trusted donors

MAX_TRUST_BYTES: Final = 1 << 18  # trust.json; an entry is about 150 bytes, at most 400
MAX_TRUSTED_PEERS: Final = 256  # more than anybody keeps by hand; read for each request with tools
MAX_TRUSTED_NAME_CHARS: Final = 64
MAX_DONORS_IN_HINT: Final = 3  # peer ids that could be trusted; each has 52 characters

# ---------------------------------------------------------------- models on this machine

MAX_TABLE_BYTES: Final = 1 << 20  # models.json; an entry is about 400 bytes
MAX_TABLE_ENTRIES: Final = 1000  # own models, and aliases; both fit the bytes above
MAX_NAMES_IN_HINT: Final = 10  # a line or two on a terminal
MAX_CACHED_HASHES: Final = 256  # of model files; nobody keeps more on one machine
# Reading a GGUF's header in a process of its own: 0.3 s and 40 MB with a vocabulary of 262,144.
FACTS_TIMEOUT_S: Final = 60.0  # a sleeping disk, a busy machine
FACTS_CPU_S: Final = 20
FACTS_MEMORY_BYTES: Final = 512 << 20
DISK_MARGIN_BYTES: Final = 256 << 20  # left free after a download: the system lives on it
FETCH_POLL_S: Final = 0.2  # a download's progress, and whether another of the file ended

# ---------------------------------------------------------------- finding donors

FIND_TIMEOUT_S: Final = 10.0  # a whole search: silent peers cost the DHT walk 3 s each time
FIND_GRACE_S: Final = 0.2  # after the first donor: others are often a few milliseconds away
PROBE_S: Final = 1.0  # a donor not heard of lately is asked first; if it lives: one round trip
# Peers on a DHT key's path learn who asks for which model, so those already known are asked
# first, for so long.
DIRECTORIES_FIRST_S: Final = 0.7
MAX_SUBJECTS: Final = 4  # names and artifacts searched one by one; for more, all donors are met
MAX_DIRECTORIES_ASKED: Final = 12  # a search's fan-out; each may know 32 donors
MAX_PROBED: Final = 8
FOREGROUND_FETCHES: Final = 12  # at the same time, for somebody who waits
BACKGROUND_FETCHES: Final = 4  # at the same time, for nobody in particular
FOREGROUND_WALKS: Final = 2  # at the same time; each has several requests under way itself
BACKGROUND_WALKS: Final = 1
WALK_SOFT_S: Final = 1.5  # a walk that has met providers by then does not wait for its slowest
ASK_AGAIN_S: Final = 5.0  # a silent peer is left alone so long, unless there is nobody else
EXPLORE_FIRST_S: Final = 1.0  # the first pause between two looks for new donors, then doubled
EXPLORE_S: Final = 60.0  # how often new donors are looked for; an offer lives 15 min
# While few donors are known, a directory or two are looked at between: a new donor matters then,
# and the answers are short.
LOOK_S: Final = 3.0
LOOKED_AT: Final = 2  # directories
FEW_DONORS: Final = 4
CONNECTIONS_CHECK_S: Final = 1.0  # how soon a new or lost connection is noticed
# A donor whose connection is lost is asked whether it lives, but not again so soon: a peer whose
# places are all taken hangs up on the idle, who would push each other out for ever.
LOST_AGAIN_S: Final = 60.0
MAX_HINTS: Final = 64  # peers that announced themselves here and are still to be asked
HINT_FETCHES: Final = 2  # of them at the same time
MAX_PROVIDERS_MET: Final = 512  # by one walk; 20 servers with full keys name 1,280 at most
REFRESH_CHECK_S: Final = 3.0
# While a model is asked for, its donors' load is kept fresher than `LIVE_LIFETIME_S`; otherwise
# a few donors' epochs are kept valid (EPOCH_S x EPOCHS_KEPT = 300 s), so that the first request
# after a pause needs no second try.
REFRESH_ASKED_S: Final = 12.0
REFRESH_IDLE_S: Final = 200.0
ASKED_FOR_S: Final = 120.0  # a model counts as being asked for so long after the last time
MAX_ASKED: Final = 64  # models remembered as being asked for
MAX_REFRESHED: Final = 16  # donors kept fresh: more than the router ever compares
MAX_SEARCHES: Final = 32  # different models searched for at the same time

ANNOUNCE_CHECK_S: Final = 1.0  # how soon a changed model, address or day is noticed
ANNOUNCE_EVERY_S: Final = 12 * 60  # a record lives 45 min: three announcements may be lost
ANNOUNCE_RETRY_S: Final = 1.0  # while nobody confirmed, then doubled
ANNOUNCE_RETRY_MAX_S: Final = 60.0
PARALLEL_ANNOUNCEMENTS: Final = 2  # each is a walk of its own; 16 models are 33 keys
OFFER_RENEW_S: Final = 5 * 60  # a third of its life: what others hand on stays valid for a while
KEYS_RENEW_S: Final = 24 * 3600
