"""The classification table. Each rule names its source; the order is part of its meaning.

Texts come first, then enhanced statuses, then the class of the code: the same number means
different things from different speakers (550 5.7.1 is a block list, a quota, a policy, or a relay
that does not know us). Postfix and others keep what they have against our host and our sender
back until RCPT, so such texts are looked for in every phase. Rules that suppress an address are
few and sure; what only a word suggests leaves the address alone.

Patterns are in lower case. "Gmail" is support.google.com/a/answer/3726730, "Exchange" the pages
on submission limits and non-delivery reports at learn.microsoft.com, "SES" its SMTP response
codes, "Yahoo" senders.yahooinc.com/error-codes, "Apple" support.apple.com/102322; "KumoMTA" gives
durations from its shaping files (August 2026), "sisimai" texts seen in returned mail, "Postfix",
"Exim" and "Dovecot" words in those servers' sources.
"""

from __future__ import annotations

from datetime import timedelta

from delivery.outcomes import Phase, Speaker
from delivery.replies.rules import NO_CODE, Rule, Verdict


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


def hours(number: float) -> timedelta:
    return timedelta(hours=number)


# The two speakers.
OURS = Speaker.SUBMISSION
THEIRS = Speaker.READER

AUTH = frozenset({Phase.AUTH})
GREETING = frozenset({Phase.CONNECT, Phase.GREETING})
STARTTLS = frozenset({Phase.STARTTLS})
EHLO = frozenset({Phase.EHLO})
SESSION = GREETING | EHLO | STARTTLS | AUTH
MAIL = frozenset({Phase.MAIL})
RCPT = frozenset({Phase.RCPT})
DOT = frozenset({Phase.FINAL_DOT})
BEFORE_DOT = frozenset({Phase.MAIL, Phase.RCPT, Phase.DATA})
RECIPIENT = frozenset({Phase.RCPT, Phase.DATA, Phase.FINAL_DOT})
LETTER = MAIL | RECIPIENT

BLOCK_LIST = (
    r"\b(?:(?:block|black|deny)[ -]?list|dnsbl|rbl\b|spamhaus|spamcop|barracudacentral|sorbs\b"
    r"|blocked (?:using|by)|poor reputation|bad reputation)"
)
# Looks ahead first, so that a long text costs one pass.
HOST_IS_LISTED = (
    r"^(?=.*" + BLOCK_LIST + r").*(?:client host|\byour (?:ip|host|server|network)|connections? "
    r"|\bsending (?:ip|host|server)|\bip (?:address )?\d|\[\d+\.\d+\.\d+\.\d+\])"
)
NOBODY = (
    r"(user|recipient|mailbox|account|address|alias)\b.{0,60}"
    r"(unknown|not found|does ?n.t exist|does not exist|not exist|no longer (exists|on server))"
    r"|unknown (user|recipient|local|mailbox|or illegal alias)|no such (user|mailbox|recipient"
    r"|address|person)|no mailbox (here|by that name)|invalid (recipient|mailbox)"
    r"|recipient rejected|address rejected"
)

RELAYING_DENIED = (
    r"relay(ing)? (access )?(is )?(denied|not (permitted|allowed)|prohibited)|unable to relay"
    r"|(cannot|can.t|will not|won.t|do not|don.t) relay|no relaying|not an? (open|mail) relay"
    r"|list of allowed rcpthosts|not (permitted|allowed) to relay"
)

RULES: tuple[Rule, ...] = (
    # ================================================================ no reply: our own words
    Rule(
        "no reply, before the letter", Verdict.UNAVAILABLE, "KumoMTA: no rule for texts of our own",
        phases=SESSION | MAIL, code=NO_CODE,
    ),
    Rule(
        "no reply", Verdict.DEFER, "KumoMTA: no rule for texts of our own", code=NO_CODE,
    ),
    # ================================================================ too much at once
    Rule(
        "reader's server has no thread free", Verdict.DEFER, "Exchange: STOREDRV.Deliver",
        text=r"storedrv\.deliver.*thread limit", wait=minutes(5),
    ),
    Rule(
        "connection is used up", Verdict.UNAVAILABLE, "Yahoo, Gmail 4.7.0: reconnect at once",
        speaker=OURS, code="4..", wait=minutes(0.05),
        text=r"messages? (allowed )?(per|in this|for this) (smtp )?(connection|session)"
        r"|connection expired, try reconnecting",
    ),
    Rule(
        "connection is used up there", Verdict.SLOW, "Yahoo, Microsoft: messages per connection",
        speaker=THEIRS, code="4..", wait=minutes(1),
        text=r"messages? (allowed )?(per|in this|for this) (smtp )?(connection|session)"
        r"|connection expired, try reconnecting",
    ),
    Rule(
        "too many connections", Verdict.BUSY, "Exchange 4.3.2; SES 421; Postfix anvil; Dovecot",
        phases=SESSION | LETTER, speaker=OURS, code="4..", wait=minutes(0.25),
        text=r"concurrent (smtp )?(connection|session)|too many (\w+ ){0,3}(connection|session)"
        r"|connection (rate )?limit|number of (\w+ )?(connection|session)s"
        r"|(sender|client) thread limit|trop de connexions|too frequent connects",
    ),
    Rule(
        "too many connections there", Verdict.SLOW, "Microsoft IB007, Orange, GMX; KumoMTA: 1 h",
        phases=LETTER, speaker=THEIRS, wait=minutes(10),
        text=r"concurrent (smtp )?(connection|session)|too many (\w+ ){0,3}(connection|session)"
        r"|connection (rate )?limit|number of (\w+ )?(connection|session)s|\bib007\b"
        r"|trop de connexions|too frequent connects",
    ),
    # ================================================================ the session: never a reader
    Rule(
        "continuous errors of ours", Verdict.STOP, "Exchange 5.2.251 to 5.2.255: each try prolongs",
        code="5..", text=r"sender throttled due to continuous",
    ),
    Rule(
        "credits are used up", Verdict.UNAVAILABLE, "SendGrid 451: Maximum credits exceeded",
        speaker=OURS, text=r"maximum credits exceeded", wait=hours(1),
    ),
    Rule(
        "login server away", Verdict.UNAVAILABLE, "Postfix: the login server, not the password",
        phases=AUTH, wait=minutes(5),
        text=r"connection lost to authentication server|temporary authentication failure"
        r"|temporary system problem",
    ),
    Rule(
        "login refused for now", Verdict.UNAVAILABLE, "RFC 4954 section 4: 454; Gmail 4.7.0",
        phases=AUTH, code="4..", wait=minutes(15),
    ),
    Rule(
        "login refused", Verdict.STOP, "RFC 4954 section 6; Exchange 5.7.3, 5.7.30, 5.7.139",
        phases=AUTH, code="5..",
    ),
    Rule(
        "login required", Verdict.STOP, "RFC 4954 section 6; Exchange 5.7.57", phases=LETTER,
        speaker=OURS, code="530|534|535|538",
    ),
    Rule(
        "login required, in words", Verdict.STOP, "Postfix, Exchange: 503, 550 and 554 for a 530",
        phases=LETTER, speaker=OURS, code="5..",
        text=r"authentication (is )?required|must (be )?(first )?(authenticate|log ?in)|need auth"
        r"|auth command first|(client|sender) (was )?not authenticated|not logged in"
        r"|unauthenticated senders? not allowed",
    ),
    Rule(
        "no encryption for now", Verdict.UNAVAILABLE, "RFC 3207 section 4",
        phases=STARTTLS, code="4..", wait=minutes(5),
    ),
    Rule(
        "no encryption", Verdict.STOP, "RFC 3207 section 4; never fall back to clear text",
        phases=STARTTLS,
    ),
    Rule(
        "our host is listed", Verdict.UNAVAILABLE, "Postfix, Exim: reject_rbl_client; 2 h",
        phases=SESSION | MAIL, speaker=OURS, code="[45]..", text=BLOCK_LIST, wait=hours(2),
    ),
    Rule(
        "our host name refused", Verdict.STOP, "RFC 5321 section 4.1.4; Gmail 5.5.4",
        phases=EHLO, code="5..",
    ),
    Rule(
        "host refuses us", Verdict.UNAVAILABLE, "RFC 5321 section 3.1; as Postfix does",
        phases=GREETING, code="5..", wait=minutes(15),
    ),
    Rule(
        "host is busy", Verdict.BUSY, "RFC 5321 section 3.8", phases=GREETING, code="4..",
    ),
    Rule("host not ready", Verdict.UNAVAILABLE, "RFC 5321 section 3.8", phases=SESSION),
    # ================================================================ this one reader, for now
    Rule(
        "reader gets too much mail", Verdict.DEFER, "Gmail 4.2.1, 5.2.1; Yahoo 450: not inactive",
        phases=RECIPIENT, text=r"receiving e?-?mail (too quickly|at a rate)", wait=hours(1),
    ),
    Rule(
        "reader's hourly limit", Verdict.DEFER, "Exchange 5.2.121, 5.2.122: per hour, received",
        phases=RECIPIENT, enhanced=r"[45]\.2\.12[12]", wait=hours(1),
    ),
    Rule(
        "greylisted", Verdict.DEFER, "RFC 6647 section 2; Postgrey, rspamd, milter-greylist",
        phases=RECIPIENT, code="4..", text=r"gr[ea]y-?list", wait=minutes(5),
    ),
    # ================================================================ our account
    Rule(
        "submission quota", Verdict.UNAVAILABLE, "Exchange 5.2.0: 5yz, and over after a day",
        phases=LETTER, text=r"submissionquotaexceeded", wait=hours(1),
    ),
    Rule(
        "our mailbox is full", Verdict.STOP, "Exchange 5.2.2 at submission: Sent Items",
        phases=LETTER, speaker=OURS,
        text=r"storedrv\.submi\w*.*quotaexceeded|mapiexception\w*quotaexceeded",
    ),
    Rule(
        "our mailbox is full, at MAIL", Verdict.STOP, "RFC 5321 section 4.2.2: 552; 5.2.2 is ours",
        phases=MAIL, speaker=OURS, enhanced=r"5\.2\.2",
    ),
    Rule(
        "mailbox full and left alone", Verdict.REJECT, "Gmail OverQuotaPerm; suppressed by bounces",
        phases=RECIPIENT, code="5..",
        text=r"(storage space|quota|full).{0,20}inactive|overquotaperm",
    ),
    Rule(
        "mailbox full", Verdict.DEFER, "RFC 3463 X.2.2; RFC 5321 section 4.2.2: 452, 552",
        phases=RECIPIENT, enhanced=r"[45]\.2\.2", wait=hours(4),
    ),
    Rule(
        "send as denied", Verdict.STOP, "Exchange 5.2.252, 5.7.60; Postfix: sender login mismatch",
        phases=LETTER, speaker=OURS, code="5..",
        text=r"sendasdenied|not (allowed|permitted|authori[sz]ed) to (send|use)"
        r"|does not have permissions? to send|not owned by user|no identity changes"
        r"|not authori[sz]ed to perform|is not verified|failed the check in region"
        r"|unconfigured sending domain|sender (address|domain|identity) .{0,40}not (verified"
        r"|allowed|configured|registered)|from address .{0,60}(verified|not match)",
    ),
    Rule(
        "sender cannot be verified", Verdict.STOP, "Exim: sender verify failed, callout to us",
        phases=LETTER, speaker=OURS, code="5..",
        text=r"sender verif\w+ failed|verification failed for <",
    ),
    Rule(
        "our authentication", Verdict.STOP, "Gmail 5.7.26 to 5.7.32; Exchange 5.7.515, 5.7.509",
        phases=LETTER, speaker=OURS, code="[45]..",
        enhanced=r"[45]\.7\.(2[3-79]|3[0-2]|40|509|515)",
    ),
    Rule(
        "our authentication, in words", Verdict.STOP, "Yahoo 5.7.9; Apple HME1: SPF, DKIM, DMARC",
        phases=LETTER, speaker=OURS, code="5..",
        text=r"(does not|doesn.t|did not|didn.t|fail\w*|not) (to )?(pass|both|authenticat\w+)"
        r".{0,40}(spf|dkim|dmarc)|dmarc (policy|verification)|sender is unauthenticated",
    ),
    Rule(
        "same Message-ID", Verdict.STOP, "Gmail 4.7.28: a fault of ours",
        phases=LETTER, text=r"same message-id",
    ),
    Rule(
        "daily quota", Verdict.UNAVAILABLE, "SES 454; Gmail 5.4.5, 5.7.1; Exchange 5.7.232, 5.1.90",
        phases=LETTER, speaker=OURS, wait=hours(1),
        text=r"daily (message |sending |user |smtp |relay )*(quota|limit)|(daily|24.hour) limit"
        r"|recipient rate limit|(tenant|sender|you.ve).{0,30}(exceeded|reached)"
        r".{0,20}(quota|daily|limit)|tenantoutbound|sending (quota|limit)|quota for sending",
    ),
    Rule(
        "tenant's quota", Verdict.UNAVAILABLE, "Exchange 5.7.232, 5.7.233, 5.1.90",
        phases=LETTER, enhanced=r"5\.(7\.23[23]|1\.90)", wait=hours(1),
    ),
    Rule(
        "hourly quota", Verdict.UNAVAILABLE, "cPanel: max emails, max defers and failures per hour",
        phases=LETTER, speaker=OURS, wait=minutes(30),
        text=r"(per|this|last) hour|hourly (\w+ )?(quota|limit)",
    ),
    Rule(
        "sending rate", Verdict.BUSY, "SES 454; Postfix anvil 4.7.1; Gmail: peak relay limit",
        phases=LETTER, speaker=OURS, code="4..", wait=minutes(1),
        text=r"throttl|maximum sending rate|peak smtp relay limit|too (much|many) ((e-?)?mail"
        r"|messages|recipients from|commands|transactions)|too fast|(message|rate).{0,12} too high"
        r"|rate.?limit|slow down|unusual (rate|amount)",
    ),
    Rule(
        "rate limited", Verdict.UNAVAILABLE, "Gmail 5.7.1, 5.7.28: a 5yz that is temporary",
        phases=LETTER, speaker=OURS, code="5..", wait=hours(1),
        text=r"has been rate limited|unusual (rate|amount) of|rate limit exceeded",
    ),
    Rule(
        "no custom domain", Verdict.STOP, "Exchange 5.7.236: onmicrosoft.com as sender",
        phases=LETTER, enhanced=r"5\.7\.236",
    ),
    Rule(
        "account blocked", Verdict.STOP, "Exchange 5.1.8, 5.7.50x, 5.7.70x, 5.7.750; Gmail 5.7.0",
        phases=LETTER, speaker=OURS, code="5..",
        text=r"bad outbound sender|banned sender|tenant has exceeded threshold"
        r"|traffic not accepted from this ip|suspended due to|e?-?mail sending denied"
        r"|(sending|your|sender.s?|smtp) (e-?mail )?account (has been |is |was )?(temporarily )?"
        r"(suspended|disabled|locked|blocked)|sending is (paused|disabled)|sending paused",
    ),
    Rule(
        "account blocked, by number", Verdict.STOP, "Exchange: codes of blocked senders",
        phases=LETTER, speaker=OURS, enhanced=r"5\.(1\.8|7\.(50[1238]|70[58]|750))",
    ),
    Rule(
        "our domain is not found, for now", Verdict.UNAVAILABLE, "RFC 3463 X.1.8; Postfix 4.1.8",
        phases=LETTER, speaker=OURS, code="4..", enhanced=r"4\.1\.[78]",
    ),
    Rule(
        "sender address refused", Verdict.STOP, "RFC 3463 X.1.7; Postfix: sender address rejected",
        phases=LETTER, speaker=OURS, code="5..",
        text=r"sender address (is )?(rejected|refused|invalid)|sender (rejected|denied|refused)"
        r"|sender address .{0,80}not a valid",
    ),
    # ================================================================ the relay and us
    Rule(
        # Or any reader could stop us by the address that she subscribes with. Neither is she
        # refused for it: when it is the relay after all, the next letter to anybody stops it.
        "relaying denied, to a route", Verdict.DEFER, "RFC 1123 section 5.2.16; Sendmail, Exim",
        phases=RCPT, speaker=OURS, code="[45]..", to_a_route=True, text=RELAYING_DENIED,
        wait=hours(1),
    ),
    Rule(
        "relaying denied", Verdict.STOP, "Postfix, Exim, Gmail 5.7.0; Exchange 5.7.54, 5.7.64",
        phases=LETTER, speaker=OURS, code="[45]..",
        text=RELAYING_DENIED + r"|tenantattribution|credentials for relay"
        r"|not authori[sz]ed to send e?-?mail directly",
    ),
    Rule(
        "relaying denied there", Verdict.REJECT, "sisimai: a domain whose MX does not know it",
        phases=RECIPIENT, speaker=THEIRS, code="5..", text=RELAYING_DENIED,
    ),
    Rule(
        "our client refused", Verdict.STOP, "Postfix: client host rejected; access by a person",
        phases=LETTER, speaker=OURS, code="5..",
        text=r"(client host|helo command) rejected",
    ),
    Rule(
        "our host is listed, said later", Verdict.UNAVAILABLE, "Postfix: smtpd_delay_reject; 2 h",
        phases=RECIPIENT, speaker=OURS, code="[45]..", wait=hours(2),
        text=HOST_IS_LISTED,
    ),
    # ================================================================ their view of our name
    Rule(
        "authentication there", Verdict.BLOCKED, "Gmail 4.7.23 to 4.7.40; Exchange 5.7.515",
        phases=LETTER, speaker=THEIRS, code="[45]..",
        enhanced=r"[45]\.7\.(2[3-79]|3[0-2]|40|509|515)", wait=hours(1),
    ),
    Rule(
        "authentication there, in words", Verdict.BLOCKED, "Yahoo 5.7.9; Apple HME1; Gmail: PTR",
        phases=LETTER, speaker=THEIRS, code="[45]..", wait=hours(1),
        text=r"(does not|doesn.t|did not|didn.t|fail\w*|not) (to )?(pass|both|authenticat\w+)"
        r".{0,40}(spf|dkim|dmarc)|dmarc (policy|verification)|sender is unauthenticated"
        r"|have a ptr record|cannot find your (reverse )?hostname|reverse dns"
        r"|unresolvable rfc.?5321|sender address rejected: domain not found",
    ),
    Rule(
        "gmail: unusual rate", Verdict.PAUSE, "Gmail 4.7.28: at least 10 min; KumoMTA: 30 min",
        phases=LETTER, speaker=THEIRS, code="4..", text=r"unusual (rate|amount)",
        wait=minutes(30),
    ),
    Rule(
        "gmail: unusual rate, refused", Verdict.PAUSE, "Gmail 5.7.28, 5.7.1; 2 h",
        phases=LETTER, speaker=THEIRS, code="5..", text=r"unusual (rate|amount)", wait=hours(2),
    ),
    Rule(
        "gmail: low reputation", Verdict.BLOCKED, "Gmail 4.7.0, 5.7.1; KumoMTA: 1 h",
        phases=LETTER, speaker=THEIRS, text=r"very low reputation", wait=hours(1),
    ),
    Rule(
        "gmail: this letter is limited", Verdict.DEFER, "Gmail 5.7.1: a 5yz that is temporary",
        phases=RECIPIENT, speaker=THEIRS, text=r"has been rate limited", wait=hours(1),
    ),
    Rule(
        "yahoo: retrying will not succeed", Verdict.BLOCKED, "Yahoo TSS09, TSS11; 24 h",
        phases=LETTER, speaker=THEIRS, wait=hours(24),
        text=r"\[tss(09|11)\]|retrying will not succeed",
    ),
    Rule(
        "yahoo: complaints", Verdict.PAUSE, "Yahoo TSS05, IPTS05; KumoMTA: 4 h",
        phases=LETTER, speaker=THEIRS, text=r"\[(tss05|ipts05)\]", wait=hours(4),
    ),
    Rule(
        "yahoo: unexpected volume", Verdict.PAUSE, "Yahoo TSS04, TS04, IPTS04; KumoMTA: 2 h",
        phases=LETTER, speaker=THEIRS, text=r"\[(tss04|ts04|ipts04)\]", wait=hours(2),
    ),
    Rule(
        "yahoo: slower", Verdict.SLOW, "Yahoo TS02, TS03; KumoMTA: 1 to 10/min for 30 min",
        phases=LETTER, speaker=THEIRS, text=r"\[ts0[23]\]", wait=minutes(30),
    ),
    Rule(
        "yahoo: block list", Verdict.BLOCKED, "Yahoo BL21, BL23; KumoMTA: 2 h",
        phases=LETTER, speaker=THEIRS, code="5..", text=r"\[bl\d*\]", wait=hours(2),
    ),
    Rule(
        "microsoft: block list", Verdict.BLOCKED, "Microsoft S3150, S3140; KumoMTA: 2 h",
        phases=LETTER, speaker=THEIRS, text=r"block list \(s\d+\)", wait=hours(2),
    ),
    Rule(
        "microsoft: rate by reputation", Verdict.PAUSE, "Microsoft 4.7.650, S775, S3114; 30 min",
        phases=LETTER, speaker=THEIRS, wait=minutes(30),
        text=r"rate limited due to ip reputation|\((s775|s3114)\)",
    ),
    Rule(
        "microsoft: busy", Verdict.SLOW, "Exchange 4.7.500 to 4.7.699; KumoMTA: 1/min for 15 min",
        phases=LETTER, speaker=THEIRS, enhanced=r"4\.7\.[56]\d\d", wait=minutes(15),
    ),
    Rule(
        "microsoft: under suspicion", Verdict.PAUSE, "Exchange 4.7.850 to 4.7.899; KumoMTA: 1 h",
        phases=LETTER, speaker=THEIRS, enhanced=r"4\.7\.8[5-9]\d", wait=hours(1),
    ),
    Rule(
        "microsoft: banned", Verdict.BLOCKED, "Exchange 5.7.606 to 5.7.649, 5.7.511; 24 h",
        phases=LETTER, speaker=THEIRS, enhanced=r"5\.7\.(60[6-9]|6[1-4]\d|511)", wait=hours(24),
    ),
    Rule(
        "microsoft: refused by this organisation", Verdict.REJECT, "Exchange 5.7.507, 5.7.513",
        phases=LETTER, enhanced=r"5\.7\.(507|513|703)",
    ),
    Rule(
        "apple: volume", Verdict.PAUSE, "Apple BS02, HCM1; KumoMTA: 15 min",
        phases=LETTER, speaker=THEIRS, code="4..", wait=minutes(15),
        text=r"excessive volume|\[(bs02|hcm1)\]",
    ),
    Rule(
        "apple: domain is listed", Verdict.BLOCKED, "Apple: Spamhaus DBL; KumoMTA: 4 h",
        phases=LETTER, speaker=THEIRS, text=r"domain present in the spamhaus", wait=hours(4),
    ),
    Rule(
        "gmx: policy", Verdict.BLOCKED, "GMX, web.de; KumoMTA: 1 to 2 h",
        phases=LETTER, speaker=THEIRS, wait=hours(2),
        text=r"nemesis esmtp|(reject due to|transaction failed).{0,20}policy "
        r"(restriction|violation)s",
    ),
    Rule(
        "orange: refused for now", Verdict.PAUSE, "Orange; KumoMTA: 1 h",
        phases=LETTER, speaker=THEIRS, text=r"service refuse", wait=hours(1),
    ),
    Rule(
        "comcast: rate", Verdict.PAUSE, "Comcast RL000010; KumoMTA: 5 min",
        phases=LETTER, speaker=THEIRS, text=r"\brl00\d{4}", wait=minutes(5),
    ),
    Rule(
        "deferred by reputation", Verdict.SLOW, "KumoMTA's default automation: 1/min for 90 min",
        phases=LETTER, speaker=THEIRS, wait=minutes(90),
        text=r"temporarily deferred|permanently deferred|rate limited due to|weren.t sent"
        r"|(server|system|service) (is )?(too )?busy|too (much|many) (e-?)?(mail|messages)"
        r"|slow down|throttl",
    ),
    Rule(
        "block list", Verdict.BLOCKED, "Postfix, Exim: reject_rbl_client; 2 h",
        phases=LETTER, speaker=THEIRS, code="[45]..", wait=hours(2),
        text=HOST_IS_LISTED,
    ),
    # ================================================================ out of step
    Rule(
        "out of step at MAIL", Verdict.UNAVAILABLE, "RFC 5321 section 4.1.4: 503; a new session",
        phases=MAIL, code="503|[123]..", wait=minutes(1),
    ),
    Rule(
        "out of step", Verdict.DEFER, "RFC 5321 section 4.1.4: 503; KumoMTA: a new session",
        phases=RECIPIENT, code="503|[1236789]..", wait=minutes(1),
    ),
    # ================================================================ size
    Rule(
        "letter too large for the server", Verdict.STOP, "RFC 1870 section 6; RFC 3463 X.3.4",
        phases=LETTER, speaker=OURS, code="5..", enhanced=r"5\.3\.4",
    ),
    Rule(
        "letter too large at MAIL", Verdict.STOP, "RFC 1870 section 6.1; they all have that size",
        phases=MAIL, code="552",
    ),
    Rule(
        "letter too large for the reader", Verdict.REJECT, "RFC 3463 X.2.3, X.3.4; not his quota",
        phases=RECIPIENT, code="5..", enhanced=r"5\.(2\.3|3\.4)",
    ),
    Rule(
        "letter too large, in words", Verdict.REJECT, "RFC 1870 section 6.3: 552 after the letter",
        phases=RECIPIENT, code="5..",
        text=r"(message|mail|letter|data|size)\b.{0,30}too (large|big)|size exceed"
        r"|exceed\w* .{0,40}\bsize",
    ),
    # ================================================================ our server's own trouble
    Rule(
        "server out of space", Verdict.UNAVAILABLE, "RFC 5321 section 4.2.2: 452; Postfix 4.3.0",
        phases=LETTER, speaker=OURS, code="4..", wait=minutes(5),
        text=r"insufficient (system |disk )?(storage|space|resources)|queue file write error"
        r"|out of (disk )?space|no space left|disk (is )?full",
    ),
    Rule(
        "server too busy", Verdict.BUSY, "RFC 5321 section 3.8; Exchange 4.7.500: 15 min",
        phases=LETTER, speaker=OURS, code="4..", wait=minutes(5),
        text=r"(server|system) (is )?(too )?busy|server overload|too busy",
    ),
    Rule(
        "server is closing", Verdict.BUSY, "RFC 5321 section 3.8: 421; nothing was taken",
        phases=BEFORE_DOT, speaker=OURS, code="421",
    ),
    Rule(
        "server is closing, after the letter", Verdict.BUSY, "RFC 5321 section 3.8; RFC 3463 X.3.2",
        phases=DOT, speaker=OURS, code="421", enhanced=r"4\.([34]\.\d+|7\.\d+)",
    ),
    Rule(
        # A letter that ends every connection must come to an end.
        "letter ends the connection", Verdict.DEFER, "RFC 5321 section 3.8: 421, and no word why",
        phases=DOT, speaker=OURS, code="421", wait=minutes(5),
    ),
    Rule(
        "reader's server is closing", Verdict.SLOW, "RFC 5321 section 3.8; Gmail 4.7.0",
        phases=LETTER, speaker=THEIRS, code="421", wait=minutes(5),
    ),
    Rule(
        "parameters refused", Verdict.STOP, "RFC 5321 section 4.1.1.11: 555 to MAIL",
        phases=MAIL, speaker=OURS, code="555|50[0124]",
    ),
    Rule(
        "sender refused", Verdict.STOP, "RFC 5321 section 3.3; RFC 3463 X.1.7: MAIL is about us",
        phases=MAIL, speaker=OURS, code="5..",
    ),
    Rule(
        "refused at MAIL there", Verdict.REJECT, "RFC 5321 section 3.3; this reader's server only",
        phases=MAIL, speaker=THEIRS, code="5..",
    ),
    # ================================================================ the mailbox, for now
    Rule(
        "mailbox full, in words", Verdict.DEFER, "sisimai: mailboxfull",
        phases=RECIPIENT, code="4..|55[0-4]", wait=hours(4),
        text=r"(mailbox|inbox|account|user|recipient)\b.{0,60}(is full|over ?-?quota"
        r"|over disk quota)|mailbox full|quota exceeded|out of storage space"
        r"|exceeded (storage|quota|allocation)",
    ),
    Rule(
        "too many recipients", Verdict.DEFER, "RFC 5321 section 4.5.3.1.10; Gmail 4.5.3",
        phases=RECIPIENT, enhanced=r"[45]\.5\.3", wait=minutes(1),
    ),
    Rule(
        "reader's server out of space", Verdict.DEFER, "RFC 3463 X.3.1; 30 min",
        phases=RECIPIENT, code="4..", enhanced=r"4\.3\.1", wait=minutes(30),
    ),
    Rule(
        "address not verified yet", Verdict.DEFER, "Postfix: reject_unverified_recipient",
        phases=RCPT, code="4..", text=r"unverified address|recipient verif\w+|domain not found",
        wait=minutes(15),
    ),
    Rule(
        "network trouble", Verdict.DEFER, "RFC 3463 X.4.1, X.4.2, X.4.4, X.4.7",
        phases=RECIPIENT, code="4..", enhanced=r"4\.4\.\d+",
    ),
    Rule(
        "expired there", Verdict.DEFER, "Exchange 5.4.300, 4.4.7: expired; 5yz, and temporary",
        phases=RECIPIENT, enhanced=r"5\.4\.300|5\.4\.7", wait=hours(1),
    ),
    Rule(
        "refused for now", Verdict.DEFER, "RFC 5321 section 4.2.1; RFC 3463 4.2.0, 4.3.0, 4.7.1",
        phases=RECIPIENT, code="4..", enhanced=r"4\.(2\.[01]|3\.[02]|7\.[01])",
    ),
    Rule(
        "try again later", Verdict.DEFER, "RFC 5321 section 4.2.1: 4yz; Exim, Sendmail",
        phases=RECIPIENT, code="4..",
        text=r"(try|retry|come back|resend).{0,20}(again|later|shortly)|temporar(y|il)",
    ),
    Rule(
        "two classes", Verdict.DEFER, "RFC 3463 section 3.1: 5yz with 4.x.x, the softer one holds",
        phases=RECIPIENT, code="5..", enhanced=r"4\..*",
    ),
    # ================================================================ this letter
    Rule(
        "letter is malformed", Verdict.REJECT, "RFC 3463 X.6; Gmail 5.6.0, 5.7.1: not RFC 5322",
        phases=DOT, code="5..",
        text=r"malformed|rfc.?5322|rfc compliant|duplicate headers|multiple addresses in from"
        r"|missing a valid|encoded-word|bare (lf|line)|disallowed header|invalid (header|content)"
        r"|unicode character",
    ),
    Rule(
        "letter's form refused", Verdict.REJECT, "RFC 3463 X.6",
        phases=DOT, code="5..", enhanced=r"5\.6\.\d+",
    ),
    Rule(
        "content is dangerous", Verdict.REJECT, "Gmail 5.7.0; virus scanners",
        phases=RECIPIENT, code="5..", text=r"security issue|virus|malware|phish|infected",
    ),
    Rule(
        "taken for spam", Verdict.REJECT, "Gmail 5.7.1; Apple CS01; Yahoo PH01; SpamAssassin",
        phases=RECIPIENT, code="5..",
        text=r"\bspam\b|unsolicited|\bjunk\b|bulk mail|likely suspicious|\[(cs01|ph01)\]"
        r"|content (rejected|denied|refused)|message content|high.?probability",
    ),
    Rule(
        "mail loop", Verdict.REJECT, "RFC 3463 X.4.6; Exchange 5.4.14",
        phases=RECIPIENT, code="5..", enhanced=r"5\.4\.(6|14)",
    ),
    # ================================================================ the address
    Rule(
        "refused by policy", Verdict.REJECT, "measured: no policy word beside a user-unknown code",
        phases=RECIPIENT, code="5..",
        text=r"\b(?:policy|policies|blocked|reputation|prohibits|suppress(?:ed|ion)|dmarc|spf\b"
        r"|dkim\b|not welcome|banned)|" + BLOCK_LIST,
    ),
    Rule(
        "exchange hides who is unknown", Verdict.REJECT, "Exchange 5.4.1: needs a second witness",
        phases=RCPT, code="5..", enhanced=r"5\.4\.1",
    ),
    Rule(
        "no such mailbox", Verdict.BAD_ADDRESS, "RFC 3463 X.1.1, X.1.3, X.1.6; Exchange 5.1.10",
        phases=RCPT, code="5..", enhanced=r"5\.1\.(1|3|6|10)",
    ),
    Rule(
        "no such mailbox, said late", Verdict.BAD_ADDRESS, "Exchange: RESOLVER.ADR; Yahoo 554, 552",
        phases=RECIPIENT, code="5..",
        text=r"resolver\.adr\.(ex)?recip(ient)?notfound|user doesn.t have an? \S+ account"
        r"|requested mail action aborted, mailbox not found",
    ),
    Rule(
        "domain takes no mail", Verdict.BAD_ADDRESS, "RFC 7505 section 4: null MX",
        phases=RCPT, code="556",
    ),
    Rule(
        "mailbox is closed", Verdict.BAD_ADDRESS, "RFC 3463 X.2.1 with words; Gmail DisabledUser",
        phases=RCPT, code="5..", enhanced=r"5\.2\.1",
        text=r"inactive|disabled|deactivated|no longer|closed|suspended",
    ),
    Rule(
        "yahoo: mailbox is closed", Verdict.BAD_ADDRESS, "Yahoo, AOL: 554 30",
        phases=RECIPIENT, code="554",
        text=r"mailbox is disabled|delivery error: dd .{0,80}no longer valid",
    ),
    Rule(
        "domain not found", Verdict.DEFER, "RFC 3463 X.1.2, X.4.4: only our own look-up proves it",
        phases=RECIPIENT, code="5..", enhanced=r"5\.(1\.2|4\.4)", wait=hours(4),
    ),
    Rule(
        # Measured in bounces: such words without the code were wrong 21 times more often.
        "nobody, in words only", Verdict.REJECT, "measured: words alone do not condemn an address",
        phases=RECIPIENT, code="5..", text=NOBODY,
    ),
    Rule(
        "not at the final dot", Verdict.REJECT, "RFC 5321 section 3.3: mailboxes are RCPT's matter",
        phases=RECIPIENT, code="5..", enhanced=r"5\.1\.\d+",
    ),
    # ================================================================ what remains, by class
    Rule(
        "unknown, policy", Verdict.REJECT, "RFC 3463 X.7: never about the address",
        phases=RECIPIENT, code="5..", enhanced=r"5\.7\.\d+", is_default=True,
    ),
    Rule(
        "unknown, permanent", Verdict.REJECT, "RFC 5321 section 4.2.1: 5yz; the address stays",
        phases=RECIPIENT, code="5..", is_default=True,
    ),
    Rule(
        "unknown at MAIL", Verdict.BUSY, "RFC 5321 section 4.2.1: 4yz; no reader was named yet",
        phases=MAIL, speaker=OURS, code="4..", is_default=True,
    ),
    Rule(
        "unknown at MAIL there", Verdict.SLOW, "RFC 5321 section 4.2.1: 4yz", phases=MAIL,
        code="4..", is_default=True,
    ),
    Rule(
        "unknown, temporary", Verdict.DEFER, "RFC 5321 section 4.2.1: 4yz", phases=RECIPIENT,
        code="4..", is_default=True,
    ),
    Rule(
        "not a reply of SMTP", Verdict.DEFER, "RFC 5321 section 4.2.1", wait=minutes(5),
        is_default=True,
    ),
)  # fmt: skip
