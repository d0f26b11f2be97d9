// The choice of a router (ops/router.rs, ops/route.rs, ops/route_swiglu.rs): the k most probable experts of a row, renormalised.
// Imported where `logits`, `rows`, `expert_ids`, `expert_weights`, `log` and `params` with `experts` and `k` are declared.
#import bounds

// An integer in the order of the logits; NaN is above or below all others, by its sign, and the two zeros are equal.
fn rank_of(logit: f32) -> i32 {
    return select(reordered(bitcast<i32>(logit)), 0, bitcast<u32>(logit) == 0x80000000u);
}

// The first of the experts with the largest logit among those that come after expert `last` in the order of choice:
// smaller logits, and equal ones of larger numbers. All come after none.
fn best_behind(base: u32, is_after: bool, last: u32) -> u32 {
    let last_rank = rank_of(logits[base + last]);
    var best = 0u;
    var best_rank = 0;
    var found = false;
    for (var e = 0u; e < params.experts; e++) {
        let rank = rank_of(logits[base + e]);
        let free = !is_after || rank < last_rank || (rank == last_rank && e > last);
        if free && (!found || rank > best_rank) {
            best = e;
            best_rank = rank;
            found = true;
        }
    }
    return best;
}

// `base`: where the row's logits begin.
fn choose(row: u32, base: u32) {
    var max_logit = logits[base];
    for (var e = 1u; e < params.experts; e++) { max_logit = max(max_logit, logits[base + e]); }
    var total = 0.0;
    for (var e = 0u; e < params.experts; e++) { total += exp_of(logits[base + e] - max_logit); }

    let at = (rows[row].y + rows[row].z) * params.k;
    var last = 0u;
    var chosen = 0.0;
    for (var i = 0u; i < params.k; i++) {
        let best = best_behind(base, i > 0u, last);
        last = best;
        let p = exp(logits[base + best] - max_logit) / total;
        chosen += p;
        expert_ids[row * params.k + i] = best;
        expert_weights[row * params.k + i] = p;
        log[at + i] = best;
    }
    for (var i = 0u; i < params.k; i++) { expert_weights[row * params.k + i] /= chosen + 1e-8; }
}
