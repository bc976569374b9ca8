"""Pennypost's settings: one file, and the environment overrides what differs between machines.

Secrets come from the environment only. For more than the variables below can say, write a
module of your own that starts with ``from config.settings import *`` and name it in
DJANGO_SETTINGS_MODULE (README.md shows a complete one).
"""

import os
from datetime import timedelta
from pathlib import Path

import dj_database_url
from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static
from django.urls import reverse_lazy
from django.utils.translation import gettext_lazy as _

BASE_DIR = Path(__file__).resolve().parent.parent
# Everything that Pennypost writes on its own disk; never under version control.
VAR_DIR = Path(os.environ.get("PENNYPOST_VAR", BASE_DIR / "var"))
VAR_DIR.mkdir(parents=True, exist_ok=True)


def unreadable(name: str, wanted: str) -> ImproperlyConfigured:
    """Names the variable and never its value, which may be a secret. Raised, and not left to
    `manage.py check`: neither gunicorn nor qcluster asks that, and a default would send letters."""
    return ImproperlyConfigured(f"The environment variable {name} is not {wanted}.")


def flag(name: str, default: bool) -> bool:
    """An environment variable as a boolean. ImproperlyConfigured for other words."""
    word = os.environ.get(name, "").strip().lower()
    if word not in {"", "1", "true", "yes", "on", "0", "false", "no", "off"}:
        raise unreadable(name, "1, true, yes or on, nor 0, false, no or off")
    return word in {"1", "true", "yes", "on"} if word else default


def words(name: str, default: str = "") -> list[str]:
    """An environment variable as a list: words between commas."""
    return [word.strip() for word in os.environ.get(name, default).split(",") if word.strip()]


def number(name: str, default: int) -> int:
    """An environment variable as a whole number. ImproperlyConfigured for anything else."""
    try:
        return int(os.environ.get(name) or default)
    except ValueError:
        raise unreadable(name, "a whole number") from None


def token_keys() -> dict[int, str]:
    """TOKEN_KEYS by their numbers. ImproperlyConfigured where one has none."""
    try:
        pairs = (pair.split(":", 1) for pair in words("TOKEN_KEYS"))
        return {int(number): key for number, key in pairs}
    except ValueError:
        raise unreadable("TOKEN_KEYS", "a list such as 1:secret,2:newer-secret") from None


def waits() -> list[timedelta]:
    """DELIVERY_RETRY_SECONDS. ImproperlyConfigured for what is no list of numbers."""
    try:
        seconds = map(float, words("DELIVERY_RETRY_SECONDS", "300,900,1800,3600,7200,14400"))
        return [timedelta(seconds=wait) for wait in seconds]
    except (ValueError, OverflowError):
        raise unreadable("DELIVERY_RETRY_SECONDS", "a list of seconds such as 300,900") from None


# ---------------------------------------------------------------------------------- the site

DEBUG = flag("DEBUG", False)
# Known to everybody: `manage.py check --deploy` and campaigns.E001 refuse it outside of DEBUG
# and of the embedded default.
INSECURE_KEY = "insecure-only-for-the-demo-and-the-tests"
SECRET_KEY = os.environ.get("SECRET_KEY", INSECURE_KEY)
# Where readers reach this site: links in letters are made from it, never from a request's Host.
BASE_URL = os.environ.get("BASE_URL", "http://localhost:8000").rstrip("/")
ALLOWED_HOSTS = words("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
CSRF_TRUSTED_ORIGINS = words("CSRF_TRUSTED_ORIGINS")

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "unfold.contrib.forms",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django_q",
    "csp",
    "campaigns",
    "delivery",
    "bounces",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "delivery.admin_alerts.banner",
            ],
        },
    },
]

# ---------------------------------------------------------------------------------- database

# SQLite for one host and up to some 100,000 readers; PostgreSQL beyond (check delivery.W001).
DATABASES = {
    "default": dj_database_url.config(
        env="DATABASE_URL",
        default=f"sqlite:///{VAR_DIR / 'pennypost.sqlite3'}",
        conn_max_age=60,
        conn_health_checks=True,
        # A pooler that gives each transaction another session: Django then keeps no cursor on the
        # server, and workers prepare no statements.
        disable_server_side_cursors=flag("DATABASE_POOLED", False),
    )
}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = {
        # IMMEDIATE: a claim must hold the write lock before it reads (SKIP LOCKED is ignored here).
        "transaction_mode": "IMMEDIATE",
        "timeout": 30,
        # FULL: an outcome that was written must survive a power cut, as on PostgreSQL.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
    }
    # A file, not memory: workers and pages meet in it from several threads and processes.
    DATABASES["default"]["TEST"] = {"NAME": str(VAR_DIR / "test.sqlite3")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# ---------------------------------------------------------------------------------- sending

CAMPAIGNS = {
    # List-Id (RFC 2919) and Message-ID need a domain that we own.
    "LIST_ID_DOMAIN": os.environ.get("LIST_ID_DOMAIN", "news.example.org"),
    "MESSAGE_ID_DOMAIN": os.environ.get("MESSAGE_ID_DOMAIN", "news.example.org"),
    # The right-most part of Feedback-ID (Gmail): 5 to 15 characters, never changed.
    "SENDER_ID": os.environ.get("SENDER_ID", "pennypost"),
    # Signs the links in letters and the return paths. Links must work for years: to rotate, add
    # a key with a higher number and keep the old ones. Empty: derived from SECRET_KEY.
    "TOKEN_KEYS": token_keys(),
    "LARGEST_IMPORT_MB": number("LARGEST_IMPORT_MB", 200),
}

WORKERS = number("DELIVERY_WORKERS", 5)
DELIVERY = {
    "WORKERS": WORKERS,
    "CYCLE_BATCH_SIZE": number("DELIVERY_CYCLE_BATCH_SIZE", 100),
    "SEND_BATCH_SIZE": number("DELIVERY_SEND_BATCH_SIZE", 20),
    "EVENT_LOOP": os.environ.get("DELIVERY_EVENT_LOOP", "auto"),
    # VERP: each letter has a MAIL FROM of its own, so that a bounce names its letter.
    "RETURN_PATH": os.environ.get("RETURN_PATH", "bounce+{token}@bounces.example.org"),
    # Flight recorders: on this machine's own disk, not on a shared one.
    "RECORDERS": VAR_DIR / "recorders" if flag("DELIVERY_RECORDERS", True) else None,
    # Which installations this machine belongs to: a database from elsewhere sends nothing here.
    # Machines without a lasting disk share a name of your choice instead.
    "INSTALLATIONS": VAR_DIR / "installations",
    "INSTALLATION": os.environ.get("PENNYPOST_INSTALLATION", ""),
    # Who takes in the mail of a reader's domain: asked of DNS in the background, and remembered.
    "LOOK_UP_EXCHANGES": flag("LOOK_UP_EXCHANGES", True),
    # Beside the banner in the admin and the mail to ADMINS. The address may hold a secret.
    "ALERTS": {"WEBHOOK": os.environ.get("ALERT_WEBHOOK", "")},
    "RETRY_AFTER": waits(),
    "PROVIDERS": {
        "default": {
            "BACKEND": "delivery.providers.smtp.SMTPProvider",
            "OPTIONS": {
                "host": os.environ.get("SMTP_HOST", "localhost"),
                "port": number("SMTP_PORT", 25),
                "security": os.environ.get("SMTP_SECURITY", "none"),  # starttls, tls, none
                "username": os.environ.get("SMTP_USERNAME", ""),
                "password": os.environ.get("SMTP_PASSWORD", ""),
                "connections": number("SMTP_CONNECTIONS", 3),
            },
            "LIMITS": [{"rate": rate} for rate in words("SMTP_RATES")],
        },
        # A dress rehearsal: each letter becomes a file, nothing leaves this machine.
        "rehearsal": {
            "BACKEND": "delivery.providers.maildir.MaildirProvider",
            "OPTIONS": {"path": os.environ.get("REHEARSAL_MAILDIR", str(VAR_DIR / "rehearsal"))},
        },
    },
}

BOUNCES = {
    "MAILBOXES": {
        "default": {
            "BACKEND": "bounces.mailboxes.maildir.MaildirMailbox",
            "OPTIONS": {"path": os.environ.get("BOUNCE_MAILDIR", str(VAR_DIR / "bounces"))},
        },
    },
    # Where Microsoft reaches this site to tell of new mail; empty: mailboxes are only polled.
    "NOTIFICATION_URL": os.environ.get("BOUNCE_NOTIFICATION_URL", "").rstrip("/"),
    # Most authoritative first; the first that knows the mail answers.
    "DETECTORS": [
        "bounces.detectors.delivery_status.DeliveryStatusDetector",
        "bounces.detectors.feedback_report.FeedbackReportDetector",
        "bounces.detectors.auto_reply.AutoReplyDetector",
        "bounces.detectors.plain_text.PlainTextDetector",
    ],
}

# Who is told by mail when a campaign was stopped, and through which server: not necessarily the
# one that readers' letters take, for that may be the trouble.
ADMINS = [(address, address) for address in words("ADMINS")]
SERVER_EMAIL = os.environ.get("SERVER_EMAIL", "pennypost@localhost")
EMAIL_HOST = os.environ.get("EMAIL_HOST", "localhost")
EMAIL_PORT = number("EMAIL_PORT", 25)
EMAIL_HOST_USER = os.environ.get("EMAIL_HOST_USER", "")
EMAIL_HOST_PASSWORD = os.environ.get("EMAIL_HOST_PASSWORD", "")
EMAIL_USE_TLS = flag("EMAIL_USE_TLS", False)
EMAIL_TIMEOUT = 10
EMAIL_SUBJECT_PREFIX = "[Pennypost] "

# ---------------------------------------------------------------------------------- processes

Q_CLUSTER = {
    "name": "pennypost",
    "orm": "default",
    # The pool of each provider, and room for coordinator, imports and the bounce poller beside it.
    "workers": number("Q_WORKERS", WORKERS + 3),
    "poll": 0.5,
    # A slice takes 20 s; a task that hangs ten minutes has lost its lease long ago.
    "timeout": 900,
    "retry": 960,
    "max_attempts": 1,  # every task is repeated by its schedule, not by the queue
    "ack_failures": True,
    "catch_up": False,
    "save_limit": 250,
    "recycle": 200,
    "label": "Tasks",
}

# ---------------------------------------------------------------------------------- web

STATIC_URL = "static/"
STATIC_ROOT = VAR_DIR / "static"
STATIC_ROOT.mkdir(exist_ok=True)
WHITENOISE_USE_FINDERS = flag("WHITENOISE_USE_FINDERS", True)
MEDIA_ROOT = VAR_DIR / "uploads"
# Uploads are streamed to disk, never held in memory.
FILE_UPLOAD_HANDLERS = ["django.core.files.uploadhandler.TemporaryFileUploadHandler"]
FILE_UPLOAD_MAX_MEMORY_SIZE = 0
DATA_UPLOAD_MAX_MEMORY_SIZE = 5 * 1024 * 1024

LANGUAGE_CODE = "en-gb"
TIME_ZONE = os.environ.get("TIME_ZONE", "UTC")
FORMAT_MODULE_PATH = ["config.formats"]
USE_I18N = True
USE_TZ = True

X_FRAME_OPTIONS = "SAMEORIGIN"  # the preview is shown in a frame of our own pages
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = BASE_URL.startswith("https://")
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
# A one-click unsubscribe is never redirected (RFC 8058), even if SECURE_SSL_REDIRECT is turned on.
SECURE_REDIRECT_EXEMPT = [r"^u/"]
if flag("BEHIND_PROXY", False):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
LOGIN_URL = reverse_lazy("admin:login")
LOGIN_REDIRECT_URL = reverse_lazy("admin:index")

# django-unfold's pages carry inline scripts and Alpine expressions; everything else is ours alone.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF, "'unsafe-inline'", "'unsafe-eval'"],
        "style-src": [SELF, "'unsafe-inline'"],
        "img-src": [SELF, "data:"],
        "font-src": [SELF, "data:"],
        "object-src": [NONE],
        "base-uri": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [SELF],
    },
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "{asctime} {levelname} {name} {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["console"], "level": os.environ.get("LOG_LEVEL", "INFO")},
}

UNFOLD = {
    "SITE_TITLE": "Pennypost",
    "SITE_HEADER": "Pennypost",
    "SITE_SUBHEADER": _("newsletters, each sent once"),
    "SITE_SYMBOL": "stacked_email",
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "BORDER_RADIUS": "8px",
    "STYLES": [lambda request: static("campaigns/admin.css")],
    "DASHBOARD_CALLBACK": "campaigns.admin.dashboard.dashboard",
    "COLORS": {
        "primary": {
            "50": "238 246 255",
            "100": "217 234 255",
            "200": "188 219 255",
            "300": "142 197 255",
            "400": "89 166 255",
            "500": "51 132 252",
            "600": "29 99 235",
            "700": "22 78 199",
            "800": "24 65 161",
            "900": "26 57 127",
            "950": "20 36 77",
        },
    },
    "SIDEBAR": {
        "show_search": False,
        "show_all_applications": False,
        "navigation": [
            {
                "title": _("Campaigns"),
                "items": [
                    {
                        "title": _("Campaigns"),
                        "icon": "campaign",
                        "link": reverse_lazy("admin:campaigns_campaign_changelist"),
                    },
                    {
                        "title": _("Deliveries"),
                        "icon": "outgoing_mail",
                        "link": reverse_lazy("admin:delivery_delivery_changelist"),
                        # By name: the page below lives under this one's address.
                        "active": lambda request: (
                            request.resolver_match.url_name or ""
                        ).startswith("delivery_delivery_"),
                    },
                    {
                        "title": _("Why did X (not) get it?"),
                        "icon": "contact_support",
                        "link": reverse_lazy("admin:delivery_why"),
                    },
                ],
            },
            {
                "title": _("Readers"),
                "separator": True,
                "items": [
                    {
                        "title": _("Lists"),
                        "icon": "lists",
                        "link": reverse_lazy("admin:campaigns_mailinglist_changelist"),
                    },
                    {
                        "title": _("Subscribers"),
                        "icon": "group",
                        "link": reverse_lazy("admin:campaigns_subscriber_changelist"),
                    },
                    {
                        "title": _("Subscriptions"),
                        "icon": "how_to_reg",
                        "link": reverse_lazy("admin:campaigns_subscription_changelist"),
                    },
                    {
                        "title": _("Suppressions"),
                        "icon": "block",
                        "link": reverse_lazy("admin:campaigns_suppression_changelist"),
                    },
                    {
                        "title": _("Imports"),
                        "icon": "upload_file",
                        "link": reverse_lazy("admin:campaigns_importjob_changelist"),
                    },
                ],
            },
            {
                "title": _("What came back"),
                "separator": True,
                "items": [
                    {
                        "title": _("Bounces"),
                        "icon": "unsubscribe",
                        "link": reverse_lazy("admin:bounces_bounce_changelist"),
                    },
                    {
                        "title": _("Received mail"),
                        "icon": "inbox",
                        "link": reverse_lazy("admin:bounces_receivedmail_changelist"),
                    },
                    {
                        "title": _("Mailboxes"),
                        "icon": "mark_as_unread",
                        "link": reverse_lazy("admin:bounces_mailboxstate_changelist"),
                    },
                    {
                        "title": _("Breakers"),
                        "icon": "electric_bolt",
                        "link": reverse_lazy("admin:bounces_breaker_changelist"),
                    },
                ],
            },
            {
                "title": _("Operation"),
                "separator": True,
                "items": [
                    {
                        "title": _("Alerts"),
                        "icon": "notification_important",
                        "link": reverse_lazy("admin:delivery_alert_changelist"),
                    },
                    {
                        "title": _("Providers"),
                        "icon": "dns",
                        "link": reverse_lazy("admin:delivery_providerstate_changelist"),
                    },
                    {
                        "title": _("Groups of domains"),
                        "icon": "hub",
                        "link": reverse_lazy("admin:delivery_groupstate_changelist"),
                    },
                    {
                        "title": _("Unclassified replies"),
                        "icon": "help",
                        "link": reverse_lazy("admin:delivery_unclassifiedreply_changelist"),
                    },
                    {
                        "title": _("Schedules"),
                        "icon": "schedule",
                        "link": reverse_lazy("admin:django_q_schedule_changelist"),
                    },
                    {
                        "title": _("Users"),
                        "icon": "person",
                        "link": reverse_lazy("admin:auth_user_changelist"),
                    },
                ],
            },
        ],
    },
}
