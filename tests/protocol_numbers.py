"""Every number of docs/protocol.md, and where the code has it. Start at `NUMBERS`."""

from __future__ import annotations

from typing import Final

from tokenplace import defaults
from tokenplace.generation import SamplingParams
from tokenplace.models.syntax import MAX_NAME_CHARS
from tokenplace.peer import gen1_input, reach_wire
from tokenplace.router import (
    affinity,
    breaker,
    experience,
    hedging,
    jitter,
    memory,
    policy,
    selector,
)

KIB: Final = 1 << 10
MIB: Final = 1 << 20
HOUR_S: Final = 3600
MINUTE_S: Final = 60
USUAL: Final = SamplingParams()

# A phrase of docs/protocol.md that stands there once, `#` for each number; then the numbers.
NUMBERS: Final[list[tuple[str, tuple[float, ...]]]] = [
    # 1. Transport
    ("Noise and yamux together, takes over # s", (defaults.UPGRADE_TIMEOUT_S,)),
    ("first window of # KiB on a stream", (defaults.STREAM_WINDOW_BYTES / KIB,)),
    ("has sent # MiB that nobody has read", (defaults.MAX_UNREAD_BYTES / MIB,)),
    (
        "says nothing for # s",
        (defaults.KEEPALIVE_INTERVAL_S + defaults.KEEPALIVE_TIMEOUT_S,),
    ),
    (
        "has heard nothing for # s, on a connection with a stream open heard or said nothing "
        "for # s",
        (defaults.KEEPALIVE_INTERVAL_S, defaults.KEEPALIVE_IN_USE_S),
    ),
    ("takes over # s for one frame. At most", (defaults.WRITE_STALL_S,)),
    ("a data frame SHOULD hold at most # KiB", (defaults.DATA_FRAME_BYTES / KIB,)),
    ("a peer for which # of these wait", (defaults.MAX_WAITING_FRAMES,)),
    ("At most # inbound streams", (defaults.MAX_INBOUND_STREAMS,)),
    ("whose protocol is not chosen within # s", (defaults.NEGOTIATE_TIMEOUT_S,)),
    ("first frame has not arrived within # s", (defaults.FIRST_FRAME_TIMEOUT_S,)),
    ("holds at most # connections in each", (defaults.MAX_CONNECTIONS,)),
    (
        "takes at most # inbound, as many more in their handshake, and after # new ones # a "
        "second; of a loopback address #, and after # new ones # a second.",
        (
            defaults.MAX_CONNECTIONS_PER_IP,
            defaults.CONNECT_BURST,
            defaults.CONNECTS_PER_S,
            defaults.MAX_LOOPBACK_CONNECTIONS,
            defaults.LOOPBACK_CONNECT_BURST,
            defaults.LOOPBACK_CONNECTS_PER_S,
        ),
    ),
    ("At most # are in their handshake", (defaults.MAX_GREETING,)),
    ("idle for longest, if for # s.", (defaults.IDLE_BEFORE_LEAVING_S,)),
    ("When all # inbound places are taken", (defaults.MAX_CONNECTIONS,)),
    ("not dialled any more after # failed dials", (defaults.FAILED_DIALS,)),
    (
        "(# tokens, filled up within # s;",
        (defaults.FAILED_DIALS, defaults.FAILED_DIALS_WINDOW_S),
    ),
    # 2. Names and DHT keys
    ("**name** is 1 to # characters", (MAX_NAME_CHARS,)),
    ("| `donors` | empty | # |", (defaults.DONORS_SHARDS,)),
    ("| `model` | the name | # |", (defaults.MODEL_SHARDS,)),
    ("| `artifact` | 64 hex digits | # |", (defaults.MODEL_SHARDS,)),
    ("from #:00 on, under tomorrow's too", (24 - defaults.ANNOUNCE_AHEAD_S / HOUR_S,)),
    ("length as LEB128, at most # KiB", (defaults.MAX_DHT_MESSAGE_BYTES / KIB,)),
    ("peer id bytes); K = #.", (defaults.K,)),
    ("ever closer servers, # at a time", (defaults.ALPHA,)),
    ("takes longer than # s, or twice the slowest", (defaults.PATIENCE_S,)),
    ("at most # in flight with those", (defaults.MAX_WALK_QUERIES,)),
    ("a question unanswered within # s is asked when nobody else", (defaults.DOUBT_S,)),
    ("once # of the closest have answered", (defaults.ENOUGH_ANSWERS,)),
    ("does not answer is left alone for # s", (defaults.CLIENT_MEMORY_S,)),
    (
        "the first # addresses count, of at most # bytes each",
        (defaults.MAX_PEER_ADDRS, defaults.MAX_ADDR_BYTES),
    ),
    (
        "A record lives # min; a donor announces again every # min",
        (defaults.PROVIDER_TTL_S / MINUTE_S, defaults.ANNOUNCE_EVERY_S / MINUTE_S),
    ),
    (
        "at most # records a key, # keys a provider and # records.",
        (
            defaults.MAX_PROVIDERS_PER_KEY,
            defaults.MAX_KEYS_PER_PROVIDER,
            defaults.MAX_PROVIDER_RECORDS,
        ),
    ),
    (
        "serves at most # streams, of one peer at most #, none for longer than # s",
        (
            defaults.MAX_DHT_STREAMS,
            defaults.MAX_DHT_STREAMS_PER_PEER,
            defaults.DHT_STREAM_LIFETIME_S,
        ),
    ),
    ("stored them, giving up after # s.", (defaults.WITHDRAW_TIMEOUT_S,)),
    (
        "# at the same time, # s apart, none again within # s;",
        (
            defaults.PROVIDER_PROBES,
            defaults.PROVIDER_PROBE_PAUSE_S,
            defaults.PROVIDER_PROBE_AGAIN_S,
        ),
    ),
    ("A question is given # s.", (defaults.QUERY_TIMEOUT_S,)),
    ("and asked again within # s;", (defaults.RECHECK_S,)),
    ("at most # each, # in all.", (defaults.BUCKET_PEERS, defaults.MAX_TABLE_PEERS)),
    (
        "at most # are in a bucket and # in the table;",
        (defaults.BUCKET_PEERS_PER_NETWORK, defaults.TABLE_PEERS_PER_NETWORK),
    ),
    (
        "at most #, and when it knows nobody ask # of them",
        (defaults.MAX_KNOWN_PEERS, defaults.JOIN_REMEMBERED),
    ),
    ("At most # a peer, those it signed", (defaults.MAX_ADDRS,)),
    # 3. Signed objects and the directory
    ("`/tokenplace/keys` | # h |", (defaults.KEYS_LIFETIME_S / HOUR_S,)),
    ("`/tokenplace/offer` | # min |", (defaults.OFFER_LIFETIME_S / MINUTE_S,)),
    ("`/tokenplace/live` | # s |", (defaults.LIVE_LIFETIME_S,)),
    ("the time (± # min)", (defaults.CLOCK_SKEW_S / MINUTE_S,)),
    ("longer than the objects, for # donors", (defaults.MAX_FLOORS,)),
    ("# s later its load figures are void", (defaults.LIVE_LIFETIME_S,)),
    ("Objects over # KiB are refused", (defaults.MAX_ADVERT_BYTES / KIB,)),
    ("`keys` = list (at most #)", (defaults.MAX_KEYS,)),
    ("`public` (bytes, at most #)", (defaults.MAX_PUBLIC_KEY_BYTES,)),
    (
        "at most # multiaddrs as text of at most # characters",
        (defaults.MAX_ADDRS, defaults.MAX_ADDR_CHARS),
    ),
    ("`models` = list (at most #)", (defaults.MAX_OFFERED_MODELS,)),
    ("`profile` (at most # characters)", (defaults.MAX_PROFILE_CHARS,)),
    ("`n_ctx` (at most #)", (defaults.MAX_N_CTX,)),
    (
        "`features` (at most # texts of at most # characters",
        (defaults.MAX_FEATURES, defaults.MAX_FEATURE_CHARS),
    ),
    ("`quant` (optional; at most # characters", (defaults.MAX_QUANT_CHARS,)),
    ("0 if unknown, at most #)", (defaults.MAX_TPS,)),
    ("Made anew at most every # s", (defaults.LIVE_REFRESH_S,)),
    (
        "at most # h from its making. For # h it is the one advertised",
        (defaults.PRIVATE_KEY_LIFETIME_S / HOUR_S, defaults.ROTATE_KEY_S / HOUR_S),
    ),
    ("`exp` is at least # min (the tolerated skew)", (defaults.CLOCK_SKEW_S / MINUTE_S,)),
    ("1 to # random bytes as `public`", (defaults.MAX_GREASE_KEY_BYTES,)),
    ("into one chunk in # a reserved key", (defaults.GREASED_CHUNKS,)),
    ("msgpack map` of at most # KiB: {`op`", (defaults.MAX_DIRECTORY_QUERY_BYTES / KIB,)),
    ("`max`: 1 to #}", (defaults.MAX_DIRECTORY_ENTRIES,)),
    ("msgpack list` of at most # KiB", (defaults.MAX_DIRECTORY_ANSWER_BYTES / KIB,)),
    ("is not there within # s, is answered", (defaults.DIRECTORY_READ_TIMEOUT_S,)),
    ("those with a stream open first, all within # s", (defaults.NEWS_TIMEOUT_S,)),
    (
        "msgpack list` of at most # bytes with the one entry",
        (defaults.MAX_NEWS_BYTES,),
    ),
    (
        "or more than # from one donor, then one every # s. News have # s to be read, # streams "
        "at once, of one peer #.",
        (
            defaults.NEWS_BURST,
            defaults.NEWS_EVERY_S,
            defaults.DIRECTORY_READ_TIMEOUT_S,
            defaults.NEWS_STREAMS,
            defaults.NEWS_STREAMS_PER_PEER,
        ),
    ),
    (
        "A peer serves at most # streams, of one peer at most #, and gives an asker # s",
        (
            defaults.DIRECTORY_STREAMS,
            defaults.DIRECTORY_STREAMS_PER_PEER,
            defaults.DIRECTORY_WRITE_TIMEOUT_S,
        ),
    ),
    # 4. The sealed request
    ("`length(4) ‖ sealed`, length at most #.", (defaults.MAX_REQUEST_FRAME_BYTES,)),
    (
        "power of two, at least # KiB, at most # MiB;",
        (defaults.MIN_PADDED_BYTES / KIB, defaults.MAX_PADDED_BYTES / MIB),
    ),
    (
        "a new one every # s; the current one and the # before it are accepted",
        (defaults.EPOCH_S, defaults.EPOCHS_KEPT),
    ),
    (
        "that is each for # minutes",
        ((1 + defaults.EPOCHS_KEPT) * defaults.EPOCH_S / MINUTE_S,),
    ),
    ("| `body` | bytes | JSON, at most # MiB", (defaults.MAX_BODY_BYTES / MIB,)),
    ("remembered, at most # requests an epoch", (defaults.MAX_SEEN_PER_EPOCH,)),
    (
        "list, optional | at most # of {`choice`: 0 to #",
        (defaults.MAX_CHOICES, defaults.MAX_CHOICES - 1),
    ),
    ("u32 for each}, of at most # ids together", (defaults.MAX_NEW_TOKENS,)),
    # 5. The answer
    ("`0 ‖ length(2) ‖ msgpack map` of at most # KiB", (defaults.MAX_REFUSAL_BYTES / KIB,)),
    (
        "zeros` to a multiple of #, at most # KiB in all",
        (defaults.CHUNK_PAD_BYTES, defaults.MAX_CHUNK_BYTES / KIB),
    ),
    ("`message` (at most # characters", (defaults.MAX_ERROR_MESSAGE_CHARS,)),
    ("`accepted` comes first, once, within # s", (defaults.ACCEPT_TIMEOUT_S,)),
    ("`max_tokens` (# if it named none)", (defaults.MAX_NEW_TOKENS,)),
    ("on a grid of # ms", (defaults.TOKEN_TICK_S * 1000,)),
    ("list of at most # [id, bytes, log-probability]]", (defaults.MAX_TOP_LOGPROBS,)),
    (
        "at most # MiB of token bytes over all choices, where each id, those in `logprobs` too, "
        "counts # bytes",
        (defaults.MAX_ANSWER_BYTES / MIB, defaults.ANSWER_ID_BYTES),
    ),
    ("`begun`? (at most # characters)", (defaults.MAX_BEGUN_CHARS,)),
    (
        "of length 1 (± #), at most # MiB in all",
        (defaults.VECTOR_LENGTH_SLACK, defaults.MAX_VECTORS_BYTES / MIB),
    ),
    ("is due # s after `taken`", (defaults.MAX_WAIT_S,)),
    ("sends `alive` every # s", (defaults.HEARTBEAT_S,)),
    (
        "gives up after # s without a byte, # s to connect",
        (defaults.IDLE_TIMEOUT_S, defaults.CONNECT_TIMEOUT_S),
    ),
    ("the first token is due #", (defaults.FIRST_TOKEN_ETA_FACTOR,)),
    ("eta + # s after `accepted`", (defaults.FIRST_TOKEN_GRACE_S,)),
    ("renews it, # times in one answer)", (defaults.MAX_REQUEUES,)),
    ("no longer than # s of waiting in all,", (defaults.MAX_WAIT_S,)),
    (
        "nothing moves ends after # s, or # s while",
        (defaults.STILL_TIMEOUT_S, defaults.QUEUE_STILL_TIMEOUT_S),
    ),
    ("at least one token every # s", (defaults.PROGRESS_TIMEOUT_S,)),
    ("The whole answer takes at most # s", (defaults.MAX_EXCHANGE_S,)),
    (
        "A donor waits # s for the whole request, then resets the stream, and # s for a requester",
        (defaults.REQUEST_TIMEOUT_S, defaults.WRITE_TIMEOUT_S),
    ),
    (
        "when the answer has ended is to be read within # s",
        (defaults.ENDING_TIMEOUT_S,),
    ),
    (
        "Answers that run have # s to end; those that do not end with the error `finishing`, which "
        "has # s",
        (defaults.FINISH_GRACE_S, defaults.FINISH_NOTICE_S),
    ),
    # 7. gen/1 and tp/1
    (
        "nested at most # deep, of at most # strings",
        (gen1_input.MAX_DEPTH, defaults.MAX_BODY_PARTS),
    ),
    ("A body over # MiB gets `too_big`", (defaults.MAX_BODY_BYTES / MIB,)),
    ("| `messages` | 1 to #", (defaults.MAX_MESSAGES,)),
    ("| `prompt_ids` | 1 to # token ids", (defaults.MAX_PROMPT_IDS,)),
    (
        "1 to # of: text, not empty, or {`ids`: as `prompt_ids`, at most #}",
        (defaults.MAX_EMBED_INPUTS, defaults.MAX_EMBED_TOKENS),
    ),
    ("| | `dimensions` | integer 1 to #, or", (defaults.MAX_EMBED_DIMENSIONS,)),
    ("1 to # ids of the answer", (defaults.MAX_NEW_TOKENS,)),
    ("`choice`, an integer 0 to #", (defaults.MAX_CHOICES - 1,)),
    ("of one request have at most # tokens", (defaults.MAX_EMBED_TOKENS,)),
    ("a prompt to be counted of over # MiB", (defaults.MAX_COUNT_BYTES / MIB,)),
    ("| `max_tokens` | integer 1 to # |", (defaults.MAX_NEW_TOKENS,)),
    ("| number 0 to 2 | # |", (USUAL.temperature,)),
    ("| integer 0 to #; 0 keeps all | # |", (defaults.MAX_TOP_K, USUAL.top_k)),
    ("0 < p ≤ 1 | # |", (USUAL.top_p,)),
    ("| `min_p` | number 0 to 1 | # |", (USUAL.min_p,)),
    ("1 keeps all | # |", (USUAL.typical_p,)),
    ("1 does nothing | # |", (USUAL.repeat_penalty,)),
    (
        "| `repeat_last_n` | integer 0 to #: tokens that `repeat_penalty` looks back at | # |",
        (defaults.MAX_REPEAT_LAST_N, USUAL.repeat_last_n),
    ),
    ("2 to 2 | # |", (USUAL.presence_penalty,)),
    ("object of at most # numbers from", (defaults.MAX_LOGIT_BIAS,)),
    ("| `n` | integer 1 to #:", (defaults.MAX_CHOICES,)),
    ("| `top_logprobs` | integer 0 to #:", (defaults.MAX_TOP_LOGPROBS,)),
    ("also `tool_calls`: at most #", (defaults.MAX_TOOL_CALLS,)),
    ("{`id`: text of at most # bytes", (defaults.MAX_TOOL_CALL_ID_BYTES,)),
    ("| `tools` | with `messages`: at most #", (defaults.MAX_TOOLS,)),
    (
        "each another; `description`: text of at most # bytes",
        (defaults.MAX_TOOL_DESCRIPTION_BYTES,),
    ),
    (
        "text of a JSON object, of at most # bytes and nested at most # deep",
        (defaults.MAX_SCHEMA_BYTES, defaults.MAX_SCHEMA_DEPTH),
    ),
    ("A tool's name is 1 to # characters", (defaults.MAX_TOOL_NAME_CHARS,)),
    (
        "at most # strings of 1 to # bytes",
        (defaults.MAX_STOP_STRINGS, defaults.MAX_STOP_STRING_BYTES),
    ),
    ("min(`max_tokens`, #,", (defaults.MAX_NEW_TOKENS,)),
    (
        "render within # s, # MiB of memory and # MiB of text",
        (
            defaults.RENDER_TIMEOUT_S,
            defaults.RENDER_MEMORY_BYTES / MIB,
            defaults.MAX_RENDERED_BYTES / MIB,
        ),
    ),
    (
        "takes over # s of processor time or # MiB to prepare",
        (defaults.GRAMMAR_COMPILE_S, defaults.GRAMMAR_CHECK_MEMORY_BYTES / MIB),
    ),
    ("whose schemas make over # KiB", (defaults.MAX_GRAMMAR_BYTES / KIB,)),
    ("at most # characters of white space in one place", (defaults.MAX_JSON_SPACE,)),
    ("more than # bytes for each token of context", (defaults.MAX_PROMPT_BYTES_PER_TOKEN,)),
    # 8. Error codes
    ("no connection or stream within # s", (defaults.CONNECT_TIMEOUT_S,)),
    ("| path | yes | no byte for # s |", (defaults.IDLE_TIMEOUT_S,)),
    # 9. Fairness bucket
    (
        "Default: # running and # queued requests and # open streams a bucket",
        (defaults.RUNNING_PER_BUCKET, defaults.QUEUED_PER_BUCKET, defaults.OPEN_PER_BUCKET),
    ),
    ("With # running a new request", (defaults.RUNNING_PER_BUCKET,)),
    (
        "# queued, # open streams, and # MiB, of one bucket # MiB, for what has come of requests"
        " beyond # KiB",
        (
            defaults.MAX_QUEUED,
            defaults.MAX_OPEN_EXCHANGES,
            defaults.MAX_LARGE_REQUESTS_BYTES / MIB,
            defaults.LARGE_REQUESTS_BYTES_PER_BUCKET / MIB,
            defaults.SMALL_REQUEST_BYTES / KIB,
        ),
    ),
    ("would begin after more than # s, as far as", (defaults.MAX_QUEUE_WAIT_S,)),
    (
        "the next queued request begins, # where nothing waits; from # to #.",
        (
            defaults.BUSY_RETRY_AFTER_S,
            defaults.MIN_BUSY_RETRY_AFTER_S,
            defaults.MAX_BUSY_RETRY_AFTER_S,
        ),
    ),
    # 12. Reach
    (
        "msgpack map` of at most # bytes: {`op`: `dial_back`, `nonce`: # random bytes",
        (defaults.MAX_REACH_MESSAGE_BYTES, reach_wire.NONCE_BYTES),
    ),
    ("after proofs by peers of # different /16", (defaults.REACH_NETWORKS,)),
    (
        "A proof holds for # min and is renewed after # min",
        (defaults.REACH_PROOF_LIFETIME_S / MINUTE_S, defaults.REACH_RENEW_S / MINUTE_S),
    ),
    ("proofs of a router's address hold for # s more", (defaults.REACH_DOUBT_S,)),
    (
        "at most # at once, and one that did not help again after # s",
        (defaults.REACH_ASKED_AT_ONCE, defaults.REACH_RETRY_S),
    ),
    ("each time (± 50 %), at most # s.", (defaults.REACH_RETRY_MAX_S,)),
    (
        "or has not arrived within # s, gets a reset; dialling and the proof have # s, "
        "the whole exchange # s. A peer serves at most # streams, of one peer at most #, and dials "
        "back at most # at once",
        (
            defaults.REACH_READ_TIMEOUT_S,
            defaults.REACH_DIAL_TIMEOUT_S,
            defaults.REACH_TIMEOUT_S,
            defaults.REACH_STREAMS,
            defaults.REACH_STREAMS_PER_PEER,
            defaults.REACH_DIALS,
        ),
    ),
    (
        "at most # times, then once every # s",
        (defaults.REACH_DIAL_BURST, defaults.REACH_DIAL_EVERY_S),
    ),
    # 11. Choosing a donor
    (
        "as a token for every # bytes, the answer as # tokens",
        (affinity.BYTES_PER_TOKEN, policy.EXPECTED_ANSWER_TOKENS),
    ),
    (
        "from a `live` that came from itself within # s, counts as # samples",
        (defaults.LIVE_LIFETIME_S, experience.PRIOR_SAMPLES),
    ),
    (
        "of which at most # count, by half every # s",
        (experience.MAX_SAMPLES, experience.HALF_LIFE_S),
    ),
    (
        "or else up to # (prefill) and # (decode) tokens/s; an unknown speed counts as # and #.",
        (
            policy.MAX_CREDIBLE_PREFILL_TPS,
            policy.MAX_CREDIBLE_DECODE_TPS,
            policy.UNKNOWN_PREFILL_TPS,
            policy.UNKNOWN_DECODE_TPS,
        ),
    ),
    ("places there, each for # ÷ decode speed", (policy.EXPECTED_ANSWER_TOKENS,)),
    ("an advertised speed over #", (selector.BOAST,)),
    ("the measured one makes it slower by #.", (policy.NEAR_EQUAL_FACTOR,)),
    ("its first token is expected within #", (policy.OWN_FACTOR,)),
    ("# % of the requests that can still go elsewhere", (100 * defaults.NEWCOMERS_SHARE,)),
    ("from its own requests of the last # s", (defaults.PREFIX_HELD_S,)),
    ("its time to the end is within #", (policy.NEAR_EQUAL_FACTOR,)),
    ("(the best time to the end ÷ its own) ^ #", (policy.DRAW_SHARPNESS,)),
    (
        "whose first token comes within # s and whose decode speed is at least # tokens/s",
        (policy.GOOD_FIRST_TOKEN_S, policy.GOOD_DECODE_TPS),
    ),
    (
        "by the odds of their times ^ #, and if anybody waits at either of them, ^ #.",
        (policy.IDLE_SHARPNESS, policy.QUEUE_SHARPNESS),
    ),
    (
        "# bad answers in a row, or # of the last #, or the first",
        (breaker.FAULTS_IN_A_ROW, breaker.FAULTS_OF_REMEMBERED, breaker.REMEMBERED),
    ),
    (
        "rests for # s, twice as long each time, at most # s",
        (defaults.BREAKER_REST_S, defaults.BREAKER_MAX_REST_S),
    ),
    (
        "as long as it says, from # s to # s, after `finishing` for # s",
        (defaults.MIN_COOL_DOWN_S, defaults.MAX_COOL_DOWN_S, defaults.LIVE_LIFETIME_S),
    ),
    ("given up after # s without a byte", (memory.SILENT_S,)),
    ("the donor is asked last, for # s", (defaults.SUSPECT_S,)),
    ("breaks before that and within # s", (defaults.BLAME_WITHIN_S,)),
    ("are drawn within ± # %", (100 * jitter.JITTER,)),
    (
        "after # attempts in a row with fewer than # new tokens each, after # attempts",
        (defaults.MAX_ATTEMPTS, defaults.PROGRESS_TOKENS, defaults.MAX_ATTEMPTS_IN_ALL),
    ),
    ("when the app has waited # s for a token", (defaults.MAX_UNANSWERED_S,)),
    (
        "sends no token within # s, and a second more for every # tokens",
        (defaults.FIRST_TOKEN_PATIENCE_S, defaults.PATIENT_PREFILL_TPS),
    ),
    ("neither yes nor no for # s, or lets", (defaults.HEDGE_UNACCEPTED_S,)),
    (
        "times (# until there are any, 1 to #), at least # s and at most # s.",
        (
            hedging.PRIOR,
            defaults.FIRST_TOKEN_ETA_FACTOR,
            defaults.HEDGE_AFTER_MIN_S,
            defaults.HEDGE_AFTER_MAX_S,
        ),
    ),
    ("says, within # s, that its queue is 0", (defaults.LIVE_LIFETIME_S,)),
    (
        "At most 1 in # requests and # more are hedged",
        (defaults.HEDGE_ONE_IN, defaults.HEDGE_BURST),
    ),
    (
        "not known yet an answer waits at most # s, and as long for a sign of life from those of "
        "whom none came within # s",
        (defaults.TWIN_SEARCH_S, defaults.LIVE_LIFETIME_S),
    ),
    ("for anybody else after a failure, at most # s", (defaults.NEXT_SEARCH_S,)),
    (
        "a sign of life # s later, then after twice as long each time, at most # s",
        (defaults.DONOR_RETRY_S, defaults.DONOR_RETRY_MAX_S),
    ),
]
