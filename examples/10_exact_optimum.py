"""The true optimum of a task, what a policy reaches of it, and the best responses there are."""

from tokenenv.optimum import enumerate_task, evaluate_exactly, plain_returns, solve

tree = enumerate_task("exact")
solution = solve(tree)
print(f"{tree.num_responses:,} responses, J* = {solution.optimum:.4f} at β = {solution.kl_coef}")
for index, prompt in enumerate(tree.prompts):
    best = solution.most_likely(index, 3)
    print(f"{prompt!r}: " + ", ".join(f"{r.text!r} {r.probability:.2f}" for r in best))

for share in (0.25, 0.5, 0.75, 1.0):
    found = evaluate_exactly(solution.policy_between(share), solution)
    print(
        f"{share:.2f} of the way: J = {found.objective:.3f}, E[R] = {found.score:.3f}, "
        f"KL(π‖π_ref) = {found.kl:.3f}, KL(π‖π*) = {found.kl_to_optimum:.3f}, "
        f"objective_fraction = {found.objective_fraction:.3f}"
    )

plain = plain_returns(solution)
print("the same policies on the scale of the plain return, for agents that know nothing of KL:")
print(
    f"uniform {plain.fraction(plain.uniform):.2f}, reference 0, best constant action "
    f"{plain.fraction(plain.constant_action):.2f}, π* {plain.fraction(plain.rlhf_optimum):.2f}, "
    "optimum 1"
)
