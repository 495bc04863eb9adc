"""What stands around a number decides whether it is somebody's: cases of the kinds that rules by form alone get wrong."""

from __future__ import annotations

import re

import pytest

from data_prep.curation.personal import Masks, personal_spans_of

# what is to be masked stands in ⟦⟧; all of it is invented
CASES = {
    "north american numbers with blanks": [
        "Anna Reyes, caretaker, ⟦619 555 0102⟧",
        "My number is ⟦503 555 0148⟧, ask for Joe.",
        "You can text the landlord on ⟦617 555 0193⟧ after six.",
        "Contact: R. Diaz ⟦702 555 2147⟧",
        "⟦212 555 3184⟧ is the cell of the driver.",
        "If the dog is found, please ring ⟦415 555 8123⟧ or come by.",
        "The plumber (⟦312 555 0170⟧) comes on Monday.",
        "联系人Mike，电话是美国的⟦415 555 0136⟧。",
        "The model has sizes 619 555 1024 and 224 512 2048",
        "The layers are 256 512 1024 wide.",
        "It has 310 420 5120 units in the three blocks.",
        "we call it with 224 480 1920 as arguments",
        "619 555 0102 733 0104 812",
    ],
    "chinese numbers with dots": [
        "报名电话⟦0531-8261.3947⟧，周末也有人接。",
        "老周 ⟦139.5812.7403⟧",
        "王师傅修锁⟦138.0571.2946⟧随叫随到",
        "总机⟦0755.2673.1948⟧转8012",
        "传真：⟦010.8402.7315⟧",
        "Mr Liu in Jinan, ⟦0531.8261.3947⟧",
        "店里座机⟦(0571)8861.2934⟧",
        "招聘司机，有意者找李经理⟦159.1108.4437⟧。",
        "Call Mr Chen at ⟦+86 139.5812.7403⟧.",
        "取 138.05.12.7403 四段",
        "版本139.5812.7403已发布",
        "firmware 0531.8261.3947 was pulled",
        "系数为0.5318261.3947",
        "坐标(139.5812, 35.7403)",
        "坐标139.5812 27.7403",
    ],
    "ranges": [
        "See lines 500-600-7000 of the log.",
        "The bands are 500-600-7000 and 300-400-2000.",
        "lines 210-350-4120",
        "Pages 212-355-4120 were scanned.",
        "行号212-355-4120",
        "Our direct line: ⟦619-555-0102⟧",
        "phone lines: ⟦619-555-0102⟧",
    ],
    "draws": [
        "开奖号码：04 11 19 28 33",
        "本期中奖号码04 11 19 28 33，特别号07。",
        "双色球红球号码 03 09 14 22 27 31",
        "The numbers drawn on the phone-in show: 02 13 24 35 46",
        "winning numbers 05 12 23 34 41, call the hotline before Friday",
        "第2023045期号码05 12 23 34 41",
        "电话：⟦04 91 55 28 33⟧",
        "我的号码⟦13812345678⟧",
        "号码是⟦021-54237816⟧",
        "车牌号码与发票号码12345678不符",
        "准考证号码1234567890",
        "账户号码6222021234",
    ],
    "counts": [
        "The model has 13015864320 parameters.",
        "parameters: 13015864320",
        "模型参数量为13015864320。",
        "共13015864320个参数",
        "参数总数：13015864320，其中激活的有2000000000",
        "total params 13015864320 trainable 13015864320",
        '{"num_parameters": 13015864320, "hidden": 4096}',
        "number of tokens: 15112345678",
        "processed 13912345678 tokens in total",
        "总计算量13912345678次浮点运算",
        "13912345678 rows in set (0.02 sec)",
        "点击量15867452310",
        "训练了15867452310个词",
        "FLOPs 18867452310 per token",
        "bytes_read 18867452310",
        '{"user": 13867452310}',
        '{"tel": "⟦13867452310⟧"}',
        "张三 ⟦13867452310⟧",
    ],
    "old identity numbers": [
        "户口簿上写着⟦110105491231002⟧。",
        "旧证⟦310115350405123⟧，新证⟦11010519491231002X⟧",
        "一代证号⟦440305510304251⟧已注销",
        "换证前的号码⟦320504620721050⟧不再使用",
        "老人的号码为⟦210203120605184⟧，1953年登记。",
        "户籍档案：张某，男，⟦420106190504236⟧，汉族",
        "张某⟦420106190504236⟧与李某⟦330106070909724⟧是夫妻。",
        "| 王某 | ⟦330106390709097⟧ | 女 |",
        "姓名：赵六\n号码：⟦610113370510050⟧",
        "the holder of old-style Chinese ID ⟦440305190508176⟧ died",
        "His hukou booklet gives ⟦320504020404233⟧ as the number.",
        "订单号110105491231002已发货",
        "快递单号 310115350405123",
        "税号110105491231002，开户行",
        "注册号：440305510304251",
        "流水号为420106190504236",
        "卡号371449635398431",
        "序列号330106390709097",
        "圆周率的一段415926535897932很长",
        "IMEI号码350115350405123",
        "Order 310115350405123 was sent.",
        "value 310115350405123 out of range",
        "数量是310115991405123",
        "证件编号：⟦110105491231002⟧",
        "税务登记证号110105491231002",
        "身份证明已交，订单号110105491231002",
        "号码⟦110105491231002⟧是他的旧身份证",
    ],
    "addresses with full-width signs": [
        "写信到⟦12345678＠qq.com⟧即可",
        "邮箱：⟦80012345＠163.com⟧。",
        "联系⟦１２３４５＠mail.example.net⟧",
        "邮箱⟦13812345678＠mail.example.net⟧，",
        "邮箱⟦5837201＠mail.example.net⟧或⟦5837202@mail.example.net⟧",
        "QQ邮箱是⟦1002003＠ｑｑ．ｃｏｍ⟧",
        "write to ⟦2024001＠mail.example.org⟧ today",
        "Ａ１２＠３号楼",
        "价格12＠个",
        "邮箱：⟦5837201＠mail.example.net⟧（常用）",
        "QQ邮箱⟦5837201@mail.example.net⟧(周末也看)",
    ],
    "versions and addresses": [
        "内核升级到2.6.32.71以后正常",
        "Linux 2.6.32.71 is the last of its line.",
        "longterm releases: 2.6.32.71, 3.2.102",
        "The kernel was 2.6.32.71 at that time.",
        "on 2.6.27.62 the driver fails",
        "users should upgrade to 2.6.35.14 now",
        "运行的是RHEL 6，内核为2.6.32.71。",
        "固件从1.4.77.90更新到1.4.77.93",
        "after the patch, 3.4.113.82 boots",
        "uname -r prints 2.6.32.71-generic",
        "Linux server at ⟦93.184.216.34⟧ runs 2.6.32.71",
        "the host ⟦2.6.132.71⟧ does not answer",
        "内核日志：来自⟦93.184.216.34⟧的连接",
        "ping ⟦2.6.32.71⟧ from the kernel test box",
    ],
}


@pytest.mark.parametrize("kind", CASES)
def test_personal_data_is_told_by_what_stands_around(kind):
    wrong = []
    for case in CASES[kind]:
        text = re.sub("[⟦⟧]", "", case)
        found = [text[start:stop] for start, stop, _ in personal_spans_of(text, Masks())]
        if found != re.findall("⟦(.*?)⟧", case):
            wrong.append((case, found))
    assert wrong == []
