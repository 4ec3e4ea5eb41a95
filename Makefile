# Each target is one line; without make, call the script itself.
.PHONY: setup run test check e2e kill-loop bench

setup:
	@scripts/setup --dev
run:
	@scripts/run
test:
	@scripts/test
check:
	@scripts/check
e2e:
	@scripts/e2e
kill-loop:
	@scripts/kill-loop
bench:
	@scripts/bench
