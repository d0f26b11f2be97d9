// The choice of a router (ops/router.rs, ops/route.rs): the k most probable experts of a row, renormalised.
// Imported where `logits`, `rows`, `top`, `weights`, `log` and `params` with `experts` and `k` are declared.

// `base`: where the row's logits begin.
fn choose(row: u32, base: u32) {
    var most = logits[base];
    for (var e = 1u; e < params.experts; e++) { most = max(most, logits[base + e]); }
    var total = 0.0;
    for (var e = 0u; e < params.experts; e++) { total += exp(logits[base + e] - most); }

    let at = (rows[row].y + rows[row].z) * params.k;
    var taken = 0u; // a bit for each expert
    var chosen = 0.0;
    for (var i = 0u; i < params.k; i++) {
        var best = 0u;
        var best_logit = -3.4e38;
        for (var e = 0u; e < params.experts; e++) {
            let free = ((taken >> e) & 1u) == 0u;
            if free && (logits[base + e] > best_logit || best_logit == -3.4e38) {
                best = e;
                best_logit = logits[base + e];
            }
        }
        taken |= 1u << best;
        let p = exp(best_logit - most) / total;
        chosen += p;
        top[row * params.k + i] = best;
        weights[row * params.k + i] = p;
        log[at + i] = best;
    }
    for (var i = 0u; i < params.k; i++) { weights[row * params.k + i] /= chosen + 1e-8; }
}
