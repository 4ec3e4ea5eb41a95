# Each target is one line; without make, call the script itself.
.PHONY: setup run test check e2e clients kill-loop bench

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
clients:
	@scripts/clients
kill-loop:
	@scripts/kill-loop
bench:
	@scripts/bench
