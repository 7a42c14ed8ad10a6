"""Word lists, countries and the train / held-out split of the demo model's data."""

import hashlib
import random

WORDS: list[str] = """
apple pear fig plum grape lemon lime mango melon peach berry cherry banana orange olive onion
carrot potato tomato pepper garlic bean corn rice bread butter cheese milk cream sugar salt honey
egg soup salad pizza pasta cake pie cookie candy juice water tea coffee cup plate bowl fork spoon
knife pan pot oven stove table chair couch bed lamp clock mirror carpet door window wall floor roof
room house home garden yard fence gate street road path bridge river lake sea ocean beach island
hill mountain valley forest desert field farm barn village town city park school church market
shop store bank hotel museum library office station airport castle tower tent cave cat dog horse cow
pig sheep goat duck goose hen rooster rabbit mouse rat fox wolf bear deer moose lion tiger zebra
monkey camel panda koala snake lizard frog toad turtle fish shark whale dolphin seal crab lobster
spider ant bee wasp fly moth bird eagle hawk owl crow robin parrot penguin swan tree leaf branch
root seed flower rose tulip lily daisy grass moss stone rock sand mud clay dust iron gold silver
copper steel glass paper wood wool cotton silk cloth leather rubber plastic sun moon star planet
earth sky cloud rain snow ice wind storm thunder fog frost fire flame smoke light shadow night day
morning evening noon week month year spring summer autumn winter hour minute second time red blue
green yellow purple pink brown black white gray hot cold warm cool wet dry big small large little
tall short long wide thin thick heavy soft hard fast slow quick early late new old young good bad
happy sad angry calm brave shy kind mean smart silly funny quiet loud clean dirty full empty open
closed rich poor strong weak sweet sour bitter spicy fresh plain bright dark sharp blunt smooth
rough round square flat deep high low near far left right north south east west head face eye ear
nose mouth lip tooth tongue neck arm hand finger thumb leg knee foot toe back chest heart brain
bone skin hair beard hat cap coat shirt dress skirt pants sock shoe boot glove scarf belt ring
watch bag purse box basket bottle can jar key lock rope chain hammer nail saw drill wrench ladder
bucket broom brush soap towel pillow blanket sheet curtain book page letter word line story poem
song music drum piano guitar violin flute trumpet dance game ball bat net goal race team coach
player king queen prince knight soldier doctor nurse teacher student baker farmer driver pilot
sailor artist writer singer actor lawyer judge police thief friend enemy mother father sister
brother son daughter baby child boy girl man woman uncle aunt cousin nephew niece family people
car bus train plane ship boat bike truck wagon wheel engine motor pedal seat ticket map camera
phone radio screen computer keyboard printer robot machine tool button switch wire cable battery
server client daemon model token layer cache kernel thread process memory buffer stream socket
packet router signal number letter zero one two three four five six seven eight nine ten eleven
twelve twenty hundred thousand million half quarter run walk jump swim climb crawl ride drive sail
throw catch kick push pull lift carry drop hold give take bring send buy sell pay eat drink cook
bake cut chop mix stir pour wash scrub sweep wipe fold pack build break fix paint draw write read
speak talk listen hear see look watch smell taste touch feel think know learn teach forget dream
sleep wake rest work play laugh cry smile frown shout sing whisper ask answer call hello world
start stop begin finish enter leave stay wait follow lead help hurt save spend win lose find hide
seek grow shrink rise fall shine glow burn melt freeze boil float sink spin turn twist bend stretch
above below under over inside outside before after always never often today tomorrow please thanks
sorry maybe python rust java basic linux ubuntu debian amazing example simple random pattern
puzzle riddle secret magic wizard dragon unicorn giant pirate treasure jungle rocket galaxy comet
meteor orbit gravity energy atom cell virus animal insect mammal reptile planet nature weather
season holiday birthday party present balloon candle lantern ribbon pocket zipper needle thread
pencil crayon marker eraser ruler notebook folder stapler envelope stamp parcel message letter
banjo velvet marble pebble puddle bubble bottle kettle saddle paddle candle handle bundle jingle
level noon civic radar kayak refund yogurt walnut almond peanut cashew hazel maple cedar willow
birch cactus fern ivy thistle clover acorn beaver otter badger hedgehog squirrel raccoon hamster
gecko iguana falcon heron stork pigeon sparrow finch raven magpie salmon trout tuna herring squid
""".split()
WORDS = sorted({w for w in WORDS if 3 <= len(w) <= 8})

_CAPITALS = """
France:Paris|Germany:Berlin|Italy:Rome|Spain:Madrid|Portugal:Lisbon|Ireland:Dublin|Norway:Oslo
Sweden:Stockholm|Finland:Helsinki|Denmark:Copenhagen|Iceland:Reykjavik|Poland:Warsaw
Austria:Vienna|Hungary:Budapest|Greece:Athens|Turkey:Ankara|Russia:Moscow|Ukraine:Kyiv
Romania:Bucharest|Bulgaria:Sofia|Serbia:Belgrade|Croatia:Zagreb|Slovenia:Ljubljana
Slovakia:Bratislava|Czechia:Prague|the Czech Republic:Prague|Belgium:Brussels
the Netherlands:Amsterdam|Luxembourg:Luxembourg|Estonia:Tallinn|Latvia:Riga|Lithuania:Vilnius
Belarus:Minsk|Moldova:Chisinau|Albania:Tirana|Malta:Valletta|Cyprus:Nicosia|Georgia:Tbilisi
Armenia:Yerevan|Azerbaijan:Baku|England:London|the United Kingdom:London|the UK:London
Scotland:Edinburgh|Wales:Cardiff|the United States:Washington|the USA:Washington|Canada:Ottawa
Mexico:Mexico City|Cuba:Havana|Jamaica:Kingston|Haiti:Port-au-Prince|Guatemala:Guatemala City
Honduras:Tegucigalpa|Nicaragua:Managua|Costa Rica:San Jose|Panama:Panama City|Colombia:Bogota
Venezuela:Caracas|Ecuador:Quito|Peru:Lima|Bolivia:Sucre|Chile:Santiago|Argentina:Buenos Aires
Uruguay:Montevideo|Paraguay:Asuncion|Brazil:Brasilia|Guyana:Georgetown|Suriname:Paramaribo
China:Beijing|Japan:Tokyo|South Korea:Seoul|North Korea:Pyongyang|Mongolia:Ulaanbaatar
India:New Delhi|Pakistan:Islamabad|Bangladesh:Dhaka|Nepal:Kathmandu|Bhutan:Thimphu
Thailand:Bangkok|Vietnam:Hanoi|Laos:Vientiane|Cambodia:Phnom Penh|Malaysia:Kuala Lumpur
Singapore:Singapore|Indonesia:Jakarta|the Philippines:Manila|Taiwan:Taipei|Kazakhstan:Astana
Uzbekistan:Tashkent|Iran:Tehran|Iraq:Baghdad|Syria:Damascus|Lebanon:Beirut|Jordan:Amman
Saudi Arabia:Riyadh|Yemen:Sanaa|Oman:Muscat|Qatar:Doha|Kuwait:Kuwait City|Bahrain:Manama
Afghanistan:Kabul|Egypt:Cairo|Libya:Tripoli|Tunisia:Tunis|Algeria:Algiers|Morocco:Rabat
Sudan:Khartoum|Ethiopia:Addis Ababa|Kenya:Nairobi|Uganda:Kampala|Rwanda:Kigali|Tanzania:Dodoma
Somalia:Mogadishu|Ghana:Accra|Nigeria:Abuja|Senegal:Dakar|Mali:Bamako|Cameroon:Yaounde
Angola:Luanda|Zambia:Lusaka|Zimbabwe:Harare|Namibia:Windhoek|Botswana:Gaborone|Mozambique:Maputo
Madagascar:Antananarivo|Australia:Canberra|New Zealand:Wellington|Fiji:Suva
"""
CAPITALS: dict[str, str] = dict(
    pair.split(":") for line in _CAPITALS.split("\n") for pair in line.split("|") if pair
)

_ONSETS = "b c d f g h j k l m n p r s t v w z bl br ch cl dr fl gr pl pr sh sl st th tr".split()
_VOWELS = "a e i o u a e i o u ai ea oo ou".split()
_CODAS = ["", "", "", "n", "r", "s", "t", "l", "m", "k", "nd", "st"]


def is_held(key: str) -> bool:
    """Return whether ``key`` belongs to the tenth of the data kept out of training."""
    return hashlib.sha256(f"hxd-demo:{key}".encode()).digest()[0] % 10 == 0


TRAIN_WORDS = [w for w in WORDS if not is_held(w)]
HELD_WORDS = [w for w in WORDS if is_held(w)]


def invented_word(rng: random.Random, low: int, high: int) -> str:
    """Return a pronounceable made-up word or, as often, a string of random letters."""
    size = rng.randint(low, high)
    if rng.random() < 0.5:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(size))
    out = ""
    while len(out) < size:
        out += rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
    return out[:size]


def word(rng: random.Random, held: bool, low: int = 3, high: int = 7) -> str:
    """Return a lower-case word of the wanted side of the split, common or made up."""
    common = rng.random() < 0.4
    while True:
        if common:
            out = rng.choice(HELD_WORDS if held else TRAIN_WORDS)
        else:
            out = invented_word(rng, low, high)
        if low <= len(out) <= high and is_held(out) == held:
            return out
