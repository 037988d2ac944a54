"""Two hundred clients that never finish their request, while one that does is served."""

import time

from chaos.kill import check_log, crowd
from live import ME, until

SHORT_ROUNDS, LONG_ROUNDS = 100, 2000
SLOW_CLIENTS = 200
MAX_MILLISECONDS = 100


def run(result, folder, rounds):
    with crowd(folder, [ME]) as (telegram, bot, _):
        bot.start()
        seconds = []
        slow = []
        try:
            for number in range(rounds):
                if number % 100 == 0:  # the bot gives up on who is slow for too long
                    slow = surround(result, bot, slow)
                started = time.monotonic()
                status = bot.get("/health").status_code if number % 10 else bot.send("m", wait=0).status_code
                seconds.append(time.monotonic() - started)
                result.expect(status in (200, 202, 429), f"answered with {status}")
        finally:
            for connection in slow:
                connection.close()
        result.count(requests=rounds)
        seconds.sort()
        p50, p90, p99 = (round(1000 * seconds[int(share * len(seconds)) - 1], 1) for share in (0.5, 0.9, 0.99))
        result.figures |= {"ms_p50": p50, "ms_p90": p90, "ms_p99": p99}
        # Of the rest the machine may have been busy with something else.
        result.expect(p90 < MAX_MILLISECONDS, f"one in ten takes more than {MAX_MILLISECONDS} ms")
        check_log(result, bot)


def surround(result, bot, slow):
    for connection in slow:
        connection.close()
    until(lambda: threads(bot) < 60, 30, "the threads of the slow ones have ended")
    slow = [bot.connect() for _ in range(SLOW_CLIENTS)]
    for connection in slow:
        connection.sendall(b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    until(lambda: threads(bot) > SLOW_CLIENTS, 30, "the slow ones are being served")
    result.figures["slow_clients"] = SLOW_CLIENTS
    return slow


def threads(bot):
    with open(f"/proc/{bot.process.pid}/status") as file:
        return int(next(line for line in file if line.startswith("Threads:")).split()[1])
