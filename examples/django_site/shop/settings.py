"""The settings. All but the last lines are as in any other site."""

from shop import logs

SECRET_KEY = "only-for-this-example"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
MIDDLEWARE = ["shop.middleware.give_id"]
INSTALLED_APPS: list[str] = []
USE_TZ = True

LOGGING = logs.LOGGING
LOGGING_CONFIG = None  # Django would open the files in every process
logs.start_logging()
