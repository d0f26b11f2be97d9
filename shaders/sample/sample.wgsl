// Chooses each output's next token and writes the row that reads it (ops/sample.rs). Grid: one workgroup per output.
//
// Values are compared as keys, integers in the same order. The largest of each thread's values bound the top k from
// below; the few values above the bound are ranked, and one thread draws. Where too many values are equal, the k-th is
// searched bit by bit. The random number is SplitMix64's (Steele, Lea and Flood 2014) in pairs of words.

const THREADS: u32 = 256u;
const GROUP: u32 = 16u; // threads whose largest values one thread compares
const ROOM: u32 = 512u; // values that are ranked
const MAX_TOP_K: u32 = 64u;
const NONE: u32 = 0xffffffffu; // no token: a logit is NaN or infinite; as a key above all others
const LARGEST: f32 = 3.40282346638528859812e38; // rounded up, it would not be an f32
const EXPONENT: u32 = 0x7f800000u;
const SIGN: u32 = 0x80000000u;
// A token's word of adjustments: how often it occurred, and above that 1 + the number of its bias.
const COUNT_BITS: u32 = 23u;
const MAX_COUNT: u32 = 0x7fffffu;
const BIASES: u32 = 256u; // of a row of adjustments, behind the words of the tokens

struct Params {
    vocab: u32,
}
struct SampleParams {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    min_p_margin: f32,
    repetition_penalty: f32,
    reciprocal: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    seed_low: u32,
    seed_high: u32,
    first: u32,
    adjustment_row: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> logits: array<u32>; // [outputs, vocab], f32 bits
#bind var<storage, read> outputs: array<u32>; // [outputs]: their rows
#bind var<storage, read> sample_params: array<SampleParams>; // [outputs]
#bind var<storage, read_write> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#bind var<storage, read_write> sampled: array<u32>; // [capacity]
#bind var<storage, read_write> adjustments: array<u32>; // [sequences, vocab + 256]

var<workgroup> best: array<vec2<u32>, THREADS>; // key and id of each thread's largest value
var<workgroup> best_of: array<vec2<u32>, GROUP>;
var<workgroup> largest_logit: vec2<u32>;
var<workgroup> bound: u32;
var<workgroup> counter: atomic<u32>;
var<workgroup> counted: u32;
var<workgroup> found: array<vec2<u32>, ROOM>;
var<workgroup> ranked: array<vec2<u32>, ROOM>;
var<workgroup> weights: array<f32, MAX_TOP_K>;
var<workgroup> choice: vec2<u32>; // the token, or NONE and the number of the one among those that equal the k-th

var<private> sampling: SampleParams;
var<private> base: u32; // of the logits
var<private> row_base: u32; // of the adjustments

// A logit with its bias and after the penalties. The clamps also keep compilers from fusing products and sums, which would
// round differently from the host.
fn adjusted(logit: f32, word: u32) -> f32 {
    var v = logit;
    let number = word >> COUNT_BITS;
    if number != 0u {
        v = clamp(v + bitcast<f32>(adjustments[row_base + params.vocab + number - 1u]), -LARGEST, LARGEST);
    }
    let count = word & MAX_COUNT;
    if count != 0u {
        v = clamp(v * select(sampling.repetition_penalty, sampling.reciprocal, v > 0.0), -LARGEST, LARGEST);
        let times = clamp(sampling.frequency_penalty * f32(count), -LARGEST, LARGEST);
        v = clamp(v - (sampling.presence_penalty + times), -LARGEST, LARGEST);
    }
    return v;
}

// Logits as keys: larger for larger values, equal for both zeros, never 0.
fn keys_of(bits: vec4<u32>) -> vec4<u32> {
    let keys = select(bits | vec4(SIGN), ~bits, bits >= vec4(SIGN));
    let of_zeros = select(keys, vec4(SIGN), (bits & vec4(~SIGN)) == vec4(0u));
    return select(of_zeros, vec4(NONE), (bits & vec4(EXPONENT)) == vec4(EXPONENT));
}

// The key of a logit with its adjustments.
fn key_at(i: u32) -> u32 {
    var bits = logits[base + i];
    if sampling.adjustment_row != 0u && (bits & EXPONENT) != EXPONENT {
        let word = adjustments[row_base + i];
        if word != 0u { bits = bitcast<u32>(adjusted(bitcast<f32>(bits), word)); }
    }
    return keys_of(vec4(bits)).x;
}

fn value_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & ~SIGN, key >= SIGN));
}

// exp of the difference to the largest value over the temperature.
fn weight_of(key: u32) -> f32 {
    return exp(max((value_of(key) - value_of(largest_logit.x)) / sampling.temperature, -100.0));
}

// Whether a comes before b: the larger value, the lower id among equals.
fn before(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x > b.x || (a.x == b.x && a.y < b.y);
}

// The largest values of four runs of tokens, and their ids.
struct Four {
    keys: vec4<u32>,
    ids: vec4<u32>,
}

// Four tokens of a thread, from `i` on.
fn four_from(i: u32) -> vec4<u32> {
    return vec4(i, i + THREADS, i + 2u * THREADS, i + 3u * THREADS);
}

fn logits_at(ids: vec4<u32>) -> vec4<u32> {
    let at = min(ids, vec4(params.vocab - 1u)) + vec4(base);
    return vec4(logits[at.x], logits[at.y], logits[at.z], logits[at.w]);
}

// The larger ones; tokens from the end of the vocabulary on do not count.
fn larger(mine: Four, bits: vec4<u32>, ids: vec4<u32>) -> Four {
    let keys = select(vec4(0u), keys_of(bits), ids < vec4(params.vocab));
    return Four(max(mine.keys, keys), select(mine.ids, ids, keys > mine.keys));
}

// The largest value of a thread's tokens without adjustments, and its id. A thread waits for 16 logits at a time, since one
// workgroup reads them all.
fn largest_as_it_is(id: u32) -> vec2<u32> {
    var mine = Four(vec4(0u), vec4(NONE));
    for (var i = id; i < params.vocab; i += 16u * THREADS) {
        let a = four_from(i);
        let b = four_from(i + 4u * THREADS);
        let c = four_from(i + 8u * THREADS);
        let d = four_from(i + 12u * THREADS);
        let of_a = logits_at(a);
        let of_b = logits_at(b);
        let of_c = logits_at(c);
        let of_d = logits_at(d);
        mine = larger(larger(larger(larger(mine, of_a, a), of_b, b), of_c, c), of_d, d);
    }
    let x = vec2(mine.keys.x, mine.ids.x);
    let y = vec2(mine.keys.y, mine.ids.y);
    let z = vec2(mine.keys.z, mine.ids.z);
    let w = vec2(mine.keys.w, mine.ids.w);
    let xy = select(x, y, before(y, x));
    let zw = select(z, w, before(w, z));
    return select(xy, zw, before(zw, xy));
}

// Every thread's largest value, and the largest of all.
fn find_top(id: u32) {
    var mine = vec2(0u, NONE);
    if sampling.adjustment_row == 0u {
        mine = largest_as_it_is(id);
    } else {
        for (var i = id; i < params.vocab; i += THREADS) {
            let key = key_at(i);
            if key > mine.x { mine = vec2(key, i); }
        }
    }
    best[id] = mine;
    workgroupBarrier();
    if id < GROUP {
        var largest = best[id * GROUP];
        for (var t = 1u; t < GROUP; t++) {
            let other = best[id * GROUP + t];
            if before(other, largest) { largest = other; }
        }
        best_of[id] = largest;
    }
    workgroupBarrier();
    if id == 0u {
        var largest = best_of[0];
        for (var t = 1u; t < GROUP; t++) {
            if before(best_of[t], largest) { largest = best_of[t]; }
        }
        largest_logit = largest;
    }
}

// How many values have a key from low to high and an id below end. The same for all threads.
fn count(id: u32, low: u32, high: u32, end: u32) -> u32 {
    if id == 0u { atomicStore(&counter, 0u); }
    workgroupBarrier();
    var n = 0u;
    for (var i = id; i < min(end, params.vocab); i += THREADS) {
        let key = key_at(i);
        n += u32(key >= low && key <= high);
    }
    atomicAdd(&counter, n);
    workgroupBarrier();
    if id == 0u { counted = atomicLoad(&counter); }
    return workgroupUniformLoad(&counted);
}

// Ranks the values of at least this key, as far as there is room; returns how many there are.
fn rank(id: u32, low: u32) -> u32 {
    if id == 0u { atomicStore(&counter, 0u); }
    workgroupBarrier();
    for (var i = id; i < params.vocab; i += THREADS) {
        let key = key_at(i);
        if key >= low {
            let at = atomicAdd(&counter, 1u);
            if at < ROOM { found[at] = vec2(key, i); }
        }
    }
    workgroupBarrier();
    if id == 0u { counted = atomicLoad(&counter); }
    let n = workgroupUniformLoad(&counted);
    if n <= ROOM {
        for (var e = id; e < n; e += THREADS) {
            var place = 0u;
            for (var o = 0u; o < n; o++) { place += u32(before(found[o], found[e])); }
            ranked[place] = found[e];
        }
    }
    workgroupBarrier();
    return n;
}

// The k-th largest of the threads' largest values: at least k values are not below it.
fn find_bound(id: u32, k: u32) -> u32 {
    let mine = best[id];
    var place = 0u;
    for (var t = 0u; t < THREADS; t++) {
        place += u32(best[t].x > mine.x || (best[t].x == mine.x && t < id));
    }
    if place == k - 1u { bound = mine.x; }
    return workgroupUniformLoad(&bound);
}

// A product of two words.
fn wide(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let middle = (a & 0xffffu) * (b >> 16u) + (low >> 16u);
    let cross = (a >> 16u) * (b & 0xffffu) + (middle & 0xffffu);
    return vec2((cross << 16u) | (low & 0xffffu), (a >> 16u) * (b >> 16u) + (middle >> 16u) + (cross >> 16u));
}

// A product of 64-bit numbers, low words first, without its high half.
fn product(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return wide(a.x, b.x) + vec2(0u, a.x * b.y + a.y * b.x);
}

// z ^ (z >> n)
fn fold(z: vec2<u32>, n: u32) -> vec2<u32> {
    return z ^ vec2((z.x >> n) | (z.y << (32u - n)), z.y >> n);
}

// The random number in [0, 1) of draw `index` (ops/sampling.rs).
fn uniform_at(index: u32) -> f32 {
    let steps = vec2(index + 1u, u32(index == NONE));
    let step = product(steps, vec2(0x7f4a7c15u, 0x9e3779b9u));
    var z = vec2(sampling.seed_low + step.x, sampling.seed_high + step.y);
    z.y += u32(z.x < step.x);
    z = product(fold(z, 30u), vec2(0x1ce4e5b9u, 0xbf58476du));
    z = product(fold(z, 27u), vec2(0x133111ebu, 0x94d049bbu));
    z = fold(z, 31u);
    return f32(z.y >> 8u) / 16777216.0;
}

// Draws among `above` ranked values and `ties` more of key `floor`.
fn pick(above: u32, ties: u32, floor: u32, u: f32) -> vec2<u32> {
    let tie_weight = weight_of(floor);
    var total = f32(ties) * tie_weight;
    for (var i = 0u; i < above; i++) { total += weights[i]; }
    var kept = above;
    var kept_ties = ties;
    if sampling.top_p < 1.0 {
        // A token goes when those before it already hold more than top p.
        let limit = sampling.top_p * total;
        var sum = 0.0;
        kept = 0u;
        while kept < above && sum <= limit {
            sum += weights[kept];
            kept++;
        }
        kept_ties = 0u;
        if kept == above && sum <= limit {
            // A weight of 0 keeps all of its ties.
            kept_ties = u32(min(f32(ties), 1.0 + (limit - sum) / max(tie_weight, 1e-38)));
        }
        total = sum + f32(kept_ties) * tie_weight;
    }
    if sampling.min_p > 0.0 {
        let least = max(value_of(largest_logit.x) + sampling.min_p_margin, -LARGEST);
        while kept > 0u && value_of(ranked[kept - 1u].x) < least { kept--; }
        if value_of(floor) < least { kept_ties = 0u; }
        total = f32(kept_ties) * tie_weight;
        for (var i = 0u; i < kept; i++) { total += weights[i]; }
    }
    let goal = u * total;
    var sum = 0.0;
    for (var i = 0u; i < kept; i++) {
        sum += weights[i];
        if sum > goal { return vec2(ranked[i].y, 0u); }
    }
    if kept_ties == 0u { return vec2(largest_logit.y, 0u); }
    return vec2(NONE, min(kept_ties - 1u, u32((goal - sum) / max(tie_weight, 1e-38))));
}

// The token among the top k that the random number falls on.
fn sample(id: u32, u: f32) -> u32 {
    let k = min(sampling.top_k, params.vocab);
    var n = rank(id, find_bound(id, k));
    var floor = ranked[k - 1u].x;
    var ties = 0u;
    let crowded = n > ROOM;
    if crowded {
        // Too many equal values: the k-th largest key from its highest bit on, then those above it.
        floor = 0u;
        for (var bit = SIGN; bit != 0u; bit >>= 1u) {
            if count(id, floor | bit, NONE, NONE) >= k { floor |= bit; }
        }
        ties = count(id, floor, floor, NONE);
        n = rank(id, floor + 1u);
    }
    if id < min(n, MAX_TOP_K) { weights[id] = weight_of(ranked[id].x); }
    workgroupBarrier();
    if id == 0u {
        var above = 0u;
        while above < n && ranked[above].x > floor { above++; }
        if !crowded {
            while above + ties < n && ranked[above + ties].x == floor { ties++; }
        }
        choice = pick(above, ties, floor, u);
        if !crowded && choice.x == NONE { choice.x = ranked[above + choice.y].y; }
    }
    let chosen = workgroupUniformLoad(&choice);
    if !crowded || chosen.x != NONE { return chosen.x; }
    // The id of tie number chosen.y: the largest end with as many ties in front.
    var end = 0u;
    for (var bit = SIGN; bit != 0u; bit >>= 1u) {
        if count(id, floor, floor, end | bit) <= chosen.y { end |= bit; }
    }
    return end;
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) group: vec3<u32>) {
    sampling = sample_params[group.x];
    base = group.x * params.vocab;
    row_base = (max(sampling.adjustment_row, 1u) - 1u) * (params.vocab + BIASES);
    let at = outputs[group.x];
    let row = rows[at];
    find_top(id);
    let first = workgroupUniformLoad(&largest_logit);
    var token = select(first.y, NONE, first.x == NONE);
    if first.x != NONE && sample_params[group.x].temperature > 0.0 { token = sample(id, uniform_at(row.y - sampling.first)); }
    if id != 0u { return; }
    sampled[row.z + row.y] = token;
    rows[at] = vec4(token, row.y + 1u, row.z, row.w + 1u);
    if sampling.adjustment_row != 0u && token != NONE {
        let word = adjustments[row_base + token];
        adjustments[row_base + token] = word + u32((word & MAX_COUNT) != MAX_COUNT);
    }
}
