// Words and colours of what a request may do in a step. Bars of waiting are thinner than those of
// work, so that the two differ without their colours too.

export interface Kind {
  label: string;
  color: string;
  works: boolean;
  why?: string;
}

const KINDS: Record<string, Kind> = {
  prefill: { label: "prefill", color: "#1f77b4", works: true },
  decode: { label: "decode", color: "#2e9e44", works: true },
  preempted: { label: "preempted", color: "#e91e8c", works: false, why: "it lost its KV to others" },
  waiting: { label: "waiting", color: "#9e9e9e", works: false },
  cap: { label: "cap", color: "#d1495b", works: false, why: "at most so many run at once (max_num_seqs, max_active)" },
  token_budget: { label: "token budget", color: "#edae49", works: false, why: "no room in the token budget" },
  kv: { label: "KV", color: "#00798c", works: false, why: "no free KV blocks" },
  policy: { label: "policy", color: "#8a4fbf", works: false, why: "another went first by policy" },
  tenant_limit: { label: "tenant limit", color: "#b5838d", works: false, why: "its tenant is at its limit" },
  batch: { label: "batch", color: "#a1754f", works: false, why: "a closed batch runs" },
  prefix: { label: "prefix", color: "#5c9ead", works: false, why: "another computes most of its prompt, which it then copies" },
};

export function kindOf(name: string | undefined): Kind {
  return KINDS[name ?? "waiting"] ?? KINDS["waiting"]!;
}

export const ALL_KINDS: readonly Kind[] = Object.values(KINDS);

/** How a request that was stopped before its reply was whole is marked, on the tape and in the table. */
export const STOPPED = { sign: "×", color: "#d1495b" };
